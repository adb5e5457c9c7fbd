"""What can be wrong with synonym trees that are valid: concepts that overlap, empty shadow pools, verbs out of place.

Every finding names its nodes. Text towers come in as a function, so this module knows no models.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ace_dist.concepts.sampler import shadow_pool
from ace_dist.concepts.trees import SynonymTrees

Pairs = dict[tuple[str, str], tuple[str, ...]]  # two roots -> the verbs of both
Encode = Callable[[Sequence[str]], npt.NDArray[np.float64]]  # S phrases -> [S, D], any length

MUCH_OVERLAP = 0.5  # share of the smaller tree's second-order verbs that two concepts may have in common
FEW_SHADOWS = 3  # verbs in a shadow pool below which wrong verbs repeat nearly every step


@dataclass(frozen=True)
class Diagnostics:
    """Findings on a tree file. `first` and `second` hold, per pair of roots, the verbs that both have at that order."""

    roots: tuple[str, ...]
    first: Pairs
    second: Pairs
    shadows: dict[str, int]  # root of a base action -> verbs in its shadow pool
    unchanged: dict[
        str, float
    ]  # root of a base action -> share of its draws (Eq. 4) that average the root's own phrases
    warnings: tuple[str, ...]

    def shared_verbs(self) -> dict[str, tuple[str, ...]]:
        """First-order verbs of more than one concept, with those concepts."""
        homes: dict[str, set[str]] = {}
        for pair, verbs in self.first.items():
            for verb in verbs:
                homes.setdefault(verb, set()).update(pair)
        return {verb: tuple(sorted(roots)) for verb, roots in sorted(homes.items())}


@dataclass(frozen=True)
class ConceptSpread:
    """How a text tower sees one concept: its first-order phrases as unit vectors.

    `tightness`: length of their mean, 1 when all are equal. `nearest`: the concept whose mean is nearest, with the
    cosine between the means. `strays`: verbs nearer to another concept's mean than to their own, with that concept.
    """

    root: str
    tightness: float
    nearest: str
    nearest_cosine: float
    strays: tuple[tuple[str, str], ...]


def diagnose(trees: SynonymTrees, base: Collection[str] | None = None) -> Diagnostics:
    """Check trees; `base` are the root verbs of base actions, whose shadow pools are counted (default: all roots)."""
    first = {root: set(trees.children(root)) for root in trees.roots}
    second = {root: {verb for _, children in trees.nodes(root) for verb in children} for root in trees.roots}
    base = trees.roots if base is None else [root for root in trees.roots if root in set(base)]
    shadows = {root: len(shadow_pool(root, base, trees)) for root in base}
    unchanged = {root: unchanged_share(root, trees) for root in base}
    shared, overlaps, warnings = common_verbs(first), common_verbs(second), []
    # One verb for two concepts in the first order: their labels contradict each other in one loss.
    for (a, b), verbs in shared.items():
        for verb in verbs:
            if verb in (a, b):
                warnings.append(f"{(b if verb == a else a)!r} > {verb!r}: the child is the root of another concept")
            else:
                warnings.append(f"{a!r} > {verb!r} and {b!r} > {verb!r}: one verb stands for two concepts")
    # Concepts that have melted together in the second order.
    for (a, b), verbs in overlaps.items():
        share = len(verbs) / min(len(second[a]), len(second[b]))
        if share > MUCH_OVERLAP:
            warnings.append(
                f"{a!r} and {b!r} share {len(verbs)} verbs, {100 * share:.0f} % of the smaller tree: "
                f"{', '.join(verbs[:8])}{', ...' if len(verbs) > 8 else ''}"
            )
    # No wrong verb, or hardly any (Eq. 6).
    for root, count in shadows.items():
        if count < FEW_SHADOWS:
            instead = "; its shadow negatives take the objects of other actions" if count == 0 else ""
            warnings.append(f"{root!r}: its shadow pool holds {count} verb{'s' * (count != 1)}{instead}")
    warnings += size_warnings(trees) + sameness_warnings(trees, unchanged)
    return Diagnostics(trees.roots, shared, overlaps, shadows, unchanged, tuple(warnings))


def common_verbs(verbs: dict[str, set[str]]) -> Pairs:
    """Pairs of roots without a common verb are left out."""
    both = {(a, b): tuple(sorted(verbs[a] & verbs[b])) for a, b in combinations(verbs, 2)}
    return {pair: common for pair, common in both.items() if common}


def size_warnings(trees: SynonymTrees) -> list[str]:
    """Nodes whose number of children differs from that of most nodes of their order (M is one number in the paper)."""
    sizes: dict[int, dict[str, int]] = {}
    for root in trees.roots:
        for path, children in trees.nodes(root):
            sizes.setdefault(len(path), {})[" > ".join(map(repr, path))] = len(children)
    warnings = []
    for order, by_node in sizes.items():
        usual = Counter(by_node.values()).most_common(1)[0][0]
        warnings += [
            f"{node}: {size} children, most nodes of order {order} have {usual}"
            for node, size in by_node.items()
            if size != usual
        ]
    return warnings


def unchanged_share(root: str, trees: SynonymTrees) -> float:
    """Share of the children that Eq. 4 draws from whose own children are those of the root: 1/M, for the root's copy.

    Such a draw averages the phrases of the root label (Eq. 3), so that L_rand repeats L_fixed for its classes.
    """
    children = trees.children(root)
    return sum(set(trees.children(root, child)) == set(children) for child in children) / len(children)


def sameness_warnings(trees: SynonymTrees, unchanged: Mapping[str, float]) -> list[str]:
    """Base concepts whose children all have the root's own synonyms, in whatever order, as WordNet's trees often do."""
    same = [root for root, share in unchanged.items() if share == 1 and len(trees.children(root)) > 1]
    if not same:
        return []
    return [
        f"{', '.join(map(repr, same))}: all children have the same synonyms as their root, so a drawn label averages "
        f"the same phrases and L_rand can equal L_fixed (Eq. 4, 8, 9); give the children synonyms of their own "
        f"(ace synonyms manual=export, edit, manual=import)"
    ]


def embedding_spread(trees: SynonymTrees, encode: Encode, object_: str = "item") -> list[ConceptSpread]:
    """Each concept under a text tower: the phrases `child ⊕ object_` of its first order, one object for all verbs."""
    verbs = [(root, child) for root in trees.roots for child in trees.children(root)]
    vectors_SD = np.asarray(encode([f"{child} {object_}" for _, child in verbs]), dtype=np.float64)
    vectors_SD = vectors_SD / np.linalg.norm(vectors_SD, axis=1, keepdims=True)
    home = np.array([trees.roots.index(root) for root, _ in verbs])
    means_RD = np.stack([vectors_SD[home == index].mean(axis=0) for index in range(len(trees.roots))])
    lengths = np.linalg.norm(means_RD, axis=1)
    directions_RD = means_RD / lengths[:, None]
    between_RR = directions_RD @ directions_RD.T - 2 * np.eye(len(trees.roots))  # a concept is not near itself
    closest_S = (vectors_SD @ directions_RD.T).argmax(axis=1)
    spreads = []
    for index, root in enumerate(trees.roots):
        near = int(between_RR[index].argmax())
        strays = [
            (verbs[s][1], trees.roots[closest_S[s]]) for s in np.flatnonzero((home == index) & (closest_S != index))
        ]
        cosine = float(between_RR[index, near]) if len(trees.roots) > 1 else float("nan")
        spreads.append(ConceptSpread(root, float(lengths[index]), trees.roots[near], cosine, tuple(strays)))
    return spreads
