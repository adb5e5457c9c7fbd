"""The stochastic labels of ACE: fixed, randomised, and shadow-negative phrases of a training step (Eq. 3, 4, 6, 7)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ace_dist.concepts.actions import Action
from ace_dist.concepts.trees import SynonymTrees
from ace_dist.utils.errors import LabelError, UserError

Phrases = tuple[tuple[str, ...], ...]  # per class, the phrases whose similarities are averaged


@dataclass(frozen=True, slots=True)
class ConceptDraw:
    """What one global step classifies into. Every field holds, per class, the phrases to average (Eq. 3).

    `fixed`: root labels; `random`: labels with drawn verbs (Eq. 4); `shadow`: wrong verb, own object (Eq. 7).
    """

    fixed: Phrases
    random: Phrases
    shadow: Phrases


class ConceptSampler:
    """Draws the labels of a step as a pure function of (seed, step), so all ranks and resumed runs draw the same.

    The positive verbs are drawn before the shadow verbs, so an ablation without shadows sees the same positives.

    Args:
        actions: the C seen root actions, in class order.
        trees: synonym trees of their verbs. `LabelError` is raised for a verb without one.
        seed: of the draws.
        leaf_augmentation: average over the children of a label's verb (Eq. 3); off: the label alone.
        shadow_negatives: draw wrong verbs (Eq. 6, 7); off: `ConceptDraw.shadow` is empty.
        exclude_real_classes: a shadow negative may not be the root label of a seen class.
        independent_draws: draw per class; the paper draws once per root verb.
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
    ) -> None:
        trees.require(action.verb for action in actions)
        repeated = sorted({str(action) for action in actions if list(actions).count(action) > 1})
        if repeated:
            raise UserError(f"the actions {', '.join(map(repr, repeated))} occur more than once in the class list")
        self.actions = tuple(actions)
        self.trees = trees
        self.seed = seed
        self.leaf_augmentation = leaf_augmentation
        self.independent_draws = independent_draws
        self.fixed = tuple(
            label_phrases(a, trees, a.verb, drawn=False) if leaf_augmentation else (str(a),) for a in self.actions
        )
        self._pools = tuple(self._pool(a, exclude_real_classes) for a in self.actions) if shadow_negatives else ()

    def draw(self, step: int) -> ConceptDraw:
        """The labels of global step `step`."""
        rng = random.Random(f"ace-dist/{self.seed}/{step}")
        positive = self._positive_verbs(rng)
        shadow = tuple(rng.choice(pool) for pool in self._pools)
        return ConceptDraw(
            fixed=self.fixed,
            random=tuple(self._leaves(a, a.verb, verb) for a, verb in zip(self.actions, positive, strict=True)),
            shadow=tuple(self._leaves(a, root, verb) for a, (root, verb) in zip(self.actions, shadow, strict=False)),
        )

    def reachable(self) -> tuple[str, ...]:
        """Every phrase that any draw can contain, sorted: what the text feature cache encodes once."""
        phrases = {phrase for group in self.fixed for phrase in group}
        for index, action in enumerate(self.actions):
            nodes = [(action.verb, child) for child in self.trees.children(action.verb)]
            nodes += self._pools[index] if self._pools else ()
            for root, verb in nodes:
                phrases.update(self._leaves(action, root, verb))
        return tuple(sorted(phrases))

    def _positive_verbs(self, rng: random.Random) -> list[str]:
        """Eq. 4: a uniform child of each class's root verb; one draw per root verb unless `independent_draws`."""
        roots = sorted({action.verb for action in self.actions})
        shared = {root: rng.choice(self.trees.children(root)) for root in roots}
        if not self.independent_draws:
            return [shared[action.verb] for action in self.actions]
        return [rng.choice(self.trees.children(action.verb)) for action in self.actions]

    def _pool(self, action: Action, exclude_real: bool) -> tuple[tuple[str, str], ...]:
        """Shadow verbs of a class with the tree each comes from."""
        verbs = shadow_pool(action.verb, [a.verb for a in self.actions], self.trees)
        if exclude_real:
            real = {str(other) for other in self.actions}
            verbs = tuple((root, verb) for root, verb in verbs if str(action.with_verb(verb)) not in real)
        if not verbs:
            raise LabelError(
                f"no wrong verb is left for {str(action)!r}: in {self.trees.source} every other seen verb shares all "
                f"its synonyms with {action.verb!r} or names a seen class; extend the trees, set "
                f"method.exclude_real_classes=false, or method.shadow_negatives=false"
            )
        return verbs

    def _leaves(self, action: Action, root: str, verb: str) -> tuple[str, ...]:
        """Phrases averaged for the drawn label `verb ⊕ O(a)`, whose verb is a first-order child of `root`."""
        label = action.with_verb(verb)
        return label_phrases(label, self.trees, root, drawn=True) if self.leaf_augmentation else (str(label),)


def shadow_pool(root: str, seen: Sequence[str], trees: SynonymTrees) -> tuple[tuple[str, str], ...]:
    """Verbs that may stand in for a wrong action of `root` (ACE Eq. 6), as sorted (tree, verb) pairs.

    All first-order children of every verb in `seen`, less the children of `root`. A verb that several trees share
    counts once, as in the union of Eq. 6, and belongs to the alphabetically first tree that has it.
    """
    own = set(trees.children(root))
    home: dict[str, str] = {}
    for other in sorted(set(seen)):
        for verb in trees.children(other):
            if verb not in own:
                home.setdefault(verb, other)
    return tuple(sorted((tree, verb) for verb, tree in home.items()))


def label_phrases(label: Action, trees: SynonymTrees, root: str, *, drawn: bool) -> tuple[str, ...]:
    """The phrases that represent `label` in Eq. 3: the children of its verb's node in the tree of `root`.

    A root label (`drawn=False`) stands for the first-order children of its verb. A drawn verb (`drawn=True`) is a
    first-order node and stands for its second-order children, also when it is the copy of the root.
    """
    verbs = trees.children(root, label.verb) if drawn else trees.children(root)
    return tuple(str(label.with_verb(verb)) for verb in verbs)
