"""Verbs of workshop, kitchen and laboratory, with synonyms of our own (`assets/synonyms/makers.json`).

They are asked before WordNet, which has a common verb in many senses and several trades' verbs in none.
"""

from collections.abc import Collection
from functools import lru_cache

from ace_dist.concepts.actions import normalise
from ace_dist.concepts.trees import SynonymTrees
from ace_dist.config import assets_dir

MAKERS = "makers.json"


@lru_cache
def maker_trees() -> SynonymTrees:
    return SynonymTrees.load(assets_dir() / "synonyms" / MAKERS)


def maker_synonyms(root: str, verb: str, avoid: Collection[str] = ()) -> list[str]:
    """Synonyms of `verb` within the concept `root`, nearest first, without those of `avoid`.

    They are those of its own node, then of the root, then all others of the tree. Empty for a root that the list lacks.
    """
    trees, root, verb = maker_trees(), normalise(root), normalise(verb)
    if root not in trees:
        return []
    nearest = trees.node(root, verb) if verb in trees.named(root) else None
    ranked = (*(nearest or ()), *trees.children(root), *trees.vocabulary(root))
    return [other for other in dict.fromkeys(ranked) if other not in {verb, *avoid}]
