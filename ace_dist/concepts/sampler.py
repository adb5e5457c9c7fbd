"""The stochastic labels of ACE: fixed, randomised and shadow-negative phrases of a training step (Eq. 3, 4, 6, 7)."""

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

from ace_dist.concepts.actions import Action, listed_texts
from ace_dist.concepts.trees import SynonymTrees
from ace_dist.utils.errors import LabelError, UserError

Phrases = tuple[tuple[str, ...], ...]  # per class, the phrases whose similarities are averaged


class ClassRows(NamedTuple):
    """Phrases as integers: those of class c are `rows[offsets[c]:offsets[c + 1]]` of `ConceptSampler.phrases`."""

    rows: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ConceptDraw:
    """What one global step classifies into: for each class, the phrases to average (Eq. 3).

    The fixed part holds root labels, the random part labels with drawn verbs (Eq. 4), the shadow part each class's
    object under a wrong verb (Eq. 7; `ConceptSampler.wrong_labels` says what else). A step reads the rows; `fixed`,
    `random` and `shadow` are the same in words.
    """

    phrases: tuple[str, ...]
    fixed_rows: ClassRows
    random_rows: ClassRows
    shadow_rows: ClassRows

    @property
    def fixed(self) -> Phrases:
        return self.words(self.fixed_rows)

    @property
    def random(self) -> Phrases:
        return self.words(self.random_rows)

    @property
    def shadow(self) -> Phrases:
        return self.words(self.shadow_rows)

    @property
    def unchanged_share(self) -> float:
        """Share of classes whose drawn label averages the very phrases of the root label: L_rand repeats L_fixed there.

        The copy of a root among its own children always does (Eq. 4), so on average this is at least 1/M.
        """
        pairs = zip(class_sets(self.fixed_rows), class_sets(self.random_rows), strict=True)
        same = [fixed == drawn for fixed, drawn in pairs]
        return sum(same) / len(same)

    def words(self, part: ClassRows) -> Phrases:
        words = [self.phrases[row] for row in part.rows]
        return tuple(tuple(words[first:end]) for first, end in pairwise(part.offsets))


class ConceptSampler:
    """Draws the labels of a step as a pure function of (seed, step), so all ranks and resumed runs draw the same.

    Everything that a draw can contain is known when the sampler is built: `phrases`, sorted, and for each class the
    rows of every verb that may be drawn. A draw therefore handles integers alone. Synonyms are drawn before shadow
    negatives, so an ablation without these draws the same synonyms.

    `actions` are the C base actions, in class order; `LabelError` is raised for a verb without a tree. The switches are
    those of `MethodConfig`; without shadow negatives `ConceptDraw.shadow` is empty. `unread` are labels that no phrase
    of a shadow negative may be, such as those of novel actions. `wrong_objects` are the actions whose shadow negatives
    have a wrong object, as no wrong verb is left for them.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        trees: SynonymTrees,
        seed: int,
        *,
        leaf_augmentation: bool = True,
        shadow_negatives: bool = True,
        exclude_real_classes: bool = False,
        independent_draws: bool = False,
        unread: Collection[str] = (),
    ) -> None:
        trees.require(action.verb for action in actions)
        if repeated := sorted({str(action) for action in actions if list(actions).count(action) > 1}):
            raise UserError(f"the actions {', '.join(map(repr, repeated))} occur more than once in the class list")
        self.actions, self.trees, self.seed = tuple(actions), trees, seed
        self.independent_draws = independent_draws

        def leaves(action: Action, root: str, verb: str) -> tuple[str, ...]:
            """What is averaged for the drawn label `verb ⊕ O(a)`, whose verb is a first-order child of `root`."""
            label = action.with_verb(verb)
            return label_phrases(label, trees, root, drawn=True) if leaf_augmentation else (str(label),)

        # In words: the root label of each class, and every verb that may be drawn for it (Eq. 4 and 6).
        fixed = [label_phrases(a, trees, a.verb, drawn=False) if leaf_augmentation else (str(a),) for a in actions]
        randomised = [[leaves(a, a.verb, verb) for verb in trees.children(a.verb)] for a in actions]
        shadow, self.wrong_objects = [], list[Action]()
        for action in actions if shadow_negatives else ():
            pool = [leaves(label, root, label.verb) for root, label in self.wrong_labels(action, exclude_real_classes)]
            shadow.append([phrases for phrases in pool if not set(unread) & set(phrases)])
            if not shadow[-1]:
                raise LabelError(
                    f"every wrong label of {str(action)!r} in {trees.source} is or is averaged over the label of a "
                    f"novel action; extend the trees, or set method.exclude_novel_labels=false"
                )

        # The same in rows of all phrases.
        self.phrases = tuple(sorted(set(chain(*fixed, *chain(*randomised), *chain(*shadow)))))
        row = {phrase: index for index, phrase in enumerate(self.phrases)}

        def rows(groups: Sequence[tuple[str, ...]]) -> list[tuple[int, ...]]:
            return [tuple(row[phrase] for phrase in group) for group in groups]

        self.fixed_rows = class_rows(rows(fixed))
        self.random_verbs = [rows(verbs) for verbs in randomised]
        self.shadow_verbs = [rows(verbs) for verbs in shadow]

        # One draw serves all classes of a root verb: the choices of each root, and each class's place among them.
        roots = sorted({action.verb for action in actions})
        self.choices = [range(len(trees.children(root))) for root in roots]
        self.class_root = [roots.index(action.verb) for action in actions]

    def root_rows(self) -> list[tuple[int, ...]]:
        """The rows of each class's root label."""
        return [self.fixed_rows.rows[first:end] for first, end in pairwise(self.fixed_rows.offsets)]

    def narrow_shadows(self, similarities: Sequence[Sequence[float]], low: float, high: float) -> None:
        """Keep the wrong labels of each class whose rank in similarity to it lies between two shares; one at least.

        `high` below 1 leaves out the nearest, which may be no wrong labels at all (false negatives: Huynh et al., WACV
        2022); a `low` above 0 leaves out those that teach nothing (semi-hard: Schroff et al., FaceNet, CVPR 2015).
        """
        for index, (pool, nearness) in enumerate(zip(self.shadow_verbs, similarities, strict=True)):
            order = sorted(range(len(pool)), key=lambda place: (nearness[place], place))
            first = min(int(low * len(order)), len(order) - 1)
            kept = order[first : max(first + 1, math.ceil(high * len(order)))]
            self.shadow_verbs[index] = [pool[place] for place in sorted(kept)]

    def draw(self, step: int) -> ConceptDraw:
        """The labels of a step: root labels, randomised ones (Eq. 4), and a shadow negative for each (Eq. 7)."""
        rng = random.Random(f"ace-dist/{self.seed}/{step}")
        # Eq. 4: a uniform child of each root verb, or of each class's.
        drawn = [rng.choice(children) for children in self.choices]
        verbs = [rng.choice(self.choices[root]) if self.independent_draws else drawn[root] for root in self.class_root]
        randomised = [nodes[verb] for nodes, verb in zip(self.random_verbs, verbs, strict=True)]
        # Eq. 7: a uniform verb of each class's pool.
        shadow = [rng.choice(nodes) for nodes in self.shadow_verbs]
        return ConceptDraw(self.phrases, self.fixed_rows, class_rows(randomised), class_rows(shadow))

    def wrong_labels(self, action: Action, exclude_real: bool) -> list[tuple[str, Action]]:
        """Labels that are wrong for a class, each with the tree of its verb, for Eq. 7 to draw one of.

        As in the paper, the class's object under the verbs of Eq. 6. The paper's data sets always have one; where every
        base action has the same verb, or all other verbs share its synonyms, Eq. 6 is empty. Beyond the paper, the
        labels then keep the class's verb, under any of its synonyms, and take the object of another base action.
        Raises `LabelError` when there is no such label either.
        """
        verbs = shadow_pool(action.verb, [a.verb for a in self.actions], self.trees)
        labels = [(root, action.with_verb(verb)) for root, verb in verbs]
        real = set(map(str, self.actions)) if exclude_real else set()
        if left := [pair for pair in labels if str(pair[1]) not in real]:
            return left
        objects = sorted({other.object for other in self.actions} - {action.object})
        labels = [(action.verb, Action(v, object_)) for object_ in objects for v in self.trees.children(action.verb)]
        if not (left := [pair for pair in labels if str(pair[1]) not in real]):
            raise LabelError(
                f"no wrong label is left for {str(action)!r}: in {self.trees.source} every other base verb shares all "
                f"its synonyms with {action.verb!r} or names a base class, and no other base action has another object "
                f"that it could take; extend the trees, or set method.shadow_negatives=false"
            )
        self.wrong_objects.append(action)
        return left


def class_rows(groups: Sequence[tuple[int, ...]]) -> ClassRows:
    return ClassRows(tuple(chain.from_iterable(groups)), (0, *accumulate(map(len, groups))))


def class_sets(part: ClassRows) -> list[set[int]]:
    return [set(part.rows[first:end]) for first, end in pairwise(part.offsets)]


def shadow_pool(root: str, base_verbs: str | Sequence[str], trees: SynonymTrees) -> tuple[tuple[str, str], ...]:
    """Verbs that may stand in for a wrong action of `root` (ACE Eq. 6), as sorted (tree, verb) pairs.

    All first-order children of every verb in `base_verbs`, less the children of `root`. A verb that several trees share
    counts once, as in the union of Eq. 6, and belongs to the alphabetically first tree that has it.
    """
    own = set(trees.children(root))
    home: dict[str, str] = {}
    for other in sorted(set(listed_texts(base_verbs))):
        for verb in trees.children(other):
            if verb not in own:
                home.setdefault(verb, other)
    return tuple(sorted((tree, verb) for verb, tree in home.items()))


def label_phrases(label: Action, trees: SynonymTrees, root: str, *, drawn: bool) -> tuple[str, ...]:
    """The phrases that represent `label` in Eq. 3: the children of its verb's node in the tree of `root`.

    A root label (`drawn=False`) stands for the first-order children of its verb. A drawn verb (`drawn=True`) is a
    first-order node and stands for its second-order children, also when it is the copy of the root.
    """
    path = (label.verb,) if drawn else ()
    return tuple(str(label.with_verb(verb)) for verb in trees.children(root, *path))
