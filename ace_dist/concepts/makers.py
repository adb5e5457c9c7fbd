"""Verbs of workshop, kitchen and laboratory, with synonyms of our own (`assets/synonyms/makers.json`).

They are asked before WordNet, which has a common verb in many senses and several trades' verbs in none.
"""

from collections.abc import Collection
from functools import lru_cache

from ace_dist.concepts.actions import PARTICLES, Action, normalise
from ace_dist.concepts.trees import SynonymTrees
from ace_dist.config import assets_dir

MAKERS = "makers.json"
NEAREST = 2  # place among the children of a root, which is at 0 itself


@lru_cache
def maker_trees() -> SynonymTrees:
    return SynonymTrees.load(assets_dir() / "synonyms" / MAKERS)


@lru_cache
def phrasal_homes() -> dict[str, str]:
    """Two-word verbs of the list with a particle, such as "screw in", and the root in whose tree each is at home.

    "in", "on" and "through" count here: alone they may begin an object ("insert in box"), in these verbs they do not.
    At home is a verb where it stands nearest to the root. One that several trees have, and none among its nearest
    synonyms, means too many things ("put on").
    """
    places: dict[str, list[tuple[int, str]]] = {}
    for root in maker_trees().roots:
        for place, verb in enumerate(maker_trees().children(root)):
            if verb.count(" ") == 1 and verb.split()[1] in {*PARTICLES, "in", "on", "through"}:
                places.setdefault(verb, []).append((place, root))
    return {verb: min(found)[1] for verb, found in places.items() if len(found) == 1 or min(found)[0] <= NEAREST}


def split_label(label: str) -> Action:
    """`Action.parse` of a label that no data set explains; a phrasal verb of the list stays whole ("screw in pin")."""
    verb = " ".join(normalise(label).split(" ")[:2])
    return Action.parse(label, verb if verb in phrasal_homes() else ())


def maker_node(root: str) -> tuple[str, ...]:
    """A verb of the list, a root or a phrasal one, and its nearest synonyms; nothing for one that the list lacks."""
    root, homes = normalise(root), phrasal_homes()
    if root in maker_trees():
        return maker_trees().children(root)
    return (maker_trees().node(homes[root], root) or ()) if root in homes else ()


def maker_synonyms(root: str, verb: str, avoid: Collection[str] = ()) -> list[str]:
    """Synonyms of `verb` within the concept `root`, nearest first, without those of `avoid`.

    They are those of its own node, then of the root, then all others of the tree; of a phrasal verb that is no root,
    those of the tree where it is nearest. Empty for a root that the list lacks.
    """
    trees, root, verb = maker_trees(), normalise(root), normalise(verb)
    home = root if root in trees else phrasal_homes().get(root)
    if home is None:
        return []
    nearest = trees.node(home, verb) if verb in trees.named(home) else None
    ranked = (*(nearest or ()), *trees.children(home), *trees.vocabulary(home))
    return [other for other in dict.fromkeys(ranked) if other not in {verb, *avoid}]
