"""Words of the base verbs that validation asks for and training never draws, and the label sets made of them."""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from ace_dist.concepts.actions import Action
from ace_dist.concepts.labels import LabelSet
from ace_dist.concepts.trees import SynonymTrees
from ace_dist.utils.errors import LabelError

RUNS = 10  # label sets, as many as the Synonym Robustness Test has

HeldOut = Mapping[str, tuple[str, ...]]  # base verb -> its synonyms that training never draws


def hold_out_words(trees: SynonymTrees, verbs: Sequence[str], share: float, seed: int) -> HeldOut:
    """This share of each base verb's first-order children, one at least, those of the smallest hashes.

    Never a base verb itself, nor a word that several of them have as a child: as a label it would name two actions.
    Raises `LabelError` for a verb whose tree has no other word.
    """
    roots = sorted(set(verbs))
    shared = {
        word for word, count in Counter(word for root in roots for word in trees.children(root)).items() if count > 1
    }
    held: dict[str, tuple[str, ...]] = {}
    for root in roots:
        synonyms = [word for word in trees.children(root) if word != root]
        own = [word for word in synonyms if word not in shared and word not in roots]
        if not own:
            raise LabelError(
                f"evaluation.validation_words={share}: the tree of {root!r} in {trees.source} has no synonym that is "
                f"its own; add one, or set evaluation.validation_words=0"
            )
        own.sort(key=lambda word: hashlib.sha256(f"{seed}/{root}/{word}".encode()).digest())
        held[root] = tuple(own[: max(1, round(share * len(synonyms)))])
    return held


def held_out_label_sets(actions: Sequence[Action], held: HeldOut, seed: int) -> list[LabelSet]:
    """`RUNS` ways to name the base actions by held-out words; a class takes its words in turn, in an order of its own.

    Each label is one phrase. An average over synonyms (Eq. 3) would be over words that training draws, and over more of
    them for one class than for another.
    """
    orders = []
    for action in actions:
        words = list(held[action.verb])
        random.Random(f"held-out words/{seed}/{action}").shuffle(words)
        orders.append(words)
    sets = []
    for run in range(RUNS):
        labels = [str(action.with_verb(order[run % len(order)])) for action, order in zip(actions, orders, strict=True)]
        sets.append(LabelSet(tuple(labels), tuple((label,) for label in labels)))
    return sets
