"""A draw of integers names the phrases that a plain implementation with strings draws from the same random stream."""

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ace_dist.concepts import Action, ConceptSampler, SynonymTrees

VERBS = ["spin", "rotate", "lift", "raise", "put down", "lay", "wipe", "rub"]
OBJECTS = ["block", "pin", "side panel"]


@st.composite
def vocabularies(draw):
    """Trees of one to four roots over few verbs, so that trees share them, and classes of these roots."""
    roots = draw(st.lists(st.sampled_from(VERBS), min_size=1, max_size=4, unique=True))
    nodes = {}
    for root in roots:
        children = draw(st.lists(st.sampled_from(VERBS), max_size=4, unique=True))
        tree = dict.fromkeys([root, *(verb for verb in children if verb != root)])
        for child in tree:
            below = draw(st.lists(st.sampled_from([*VERBS, "turn", "hoist"]), max_size=3, unique=True))
            tree[child] = [child, *(verb for verb in below if verb != child)]
        nodes[root] = tree
    classes = st.tuples(st.sampled_from(roots), st.sampled_from(OBJECTS))
    actions = draw(st.lists(classes, min_size=1, max_size=8, unique=True))
    return nodes, actions


def pools(nodes, actions, exclude_real):
    """Eq. 6 for each class: (tree, verb, object) of every child of another verb's tree, a shared verb once, sorted.

    Where that is empty: the children of the class's own tree with the objects of other classes.
    """
    real = {f"{verb} {name}" for verb, name in actions}
    found = []
    for root, name in actions:
        home = {}
        for other in sorted({verb for verb, _ in actions}):
            for verb in nodes[other]:
                if verb not in nodes[root] and verb not in home and not (exclude_real and f"{verb} {name}" in real):
                    home[verb] = other
        wrong = sorted((tree, verb, name) for verb, tree in home.items())
        others = sorted({other for _, other in actions} - {name})
        own = [(root, verb, other) for other in others for verb in nodes[root]]
        found.append(wrong or [node for node in own if not (exclude_real and f"{node[1]} {node[2]}" in real)])
    return found


def plain_draw(nodes, actions, seed, step, leaves, shadow_pools, independent):
    """The fixed, random and shadow phrases of a step, class by class, in words."""
    rng = random.Random(f"ace-dist/{seed}/{step}")
    drawn = {root: rng.choice(list(nodes[root])) for root in sorted({verb for verb, _ in actions})}
    verbs = [rng.choice(list(nodes[root])) if independent else drawn[root] for root, _ in actions]
    wrong = [rng.choice(pool) for pool in shadow_pools]

    def phrases(tree, verb, name):
        return tuple(f"{leaf} {name}" for leaf in (nodes[tree][verb] if leaves else [verb]))

    fixed = tuple(tuple(f"{v} {name}" for v in (nodes[root] if leaves else [root])) for root, name in actions)
    positive = tuple(phrases(root, verb, name) for (root, name), verb in zip(actions, verbs, strict=True))
    shadow = tuple(phrases(*node) for node in wrong)
    return fixed, positive, shadow


@settings(max_examples=150, deadline=None, database=None)
@given(vocabularies(), st.integers(0, 2**32), st.integers(0, 10**6), st.tuples(*[st.booleans()] * 4))
def test_integer_draws_are_the_plain_ones(vocabulary, seed, first, options):
    nodes, actions = vocabulary
    leaves, shadows, exclude_real, independent = options
    shadow_pools = pools(nodes, actions, exclude_real)
    if shadows and not all(shadow_pools):
        shadows = False  # which `test_shadow_options` shows to be refused
    sampler = ConceptSampler(
        [Action(*action) for action in actions], SynonymTrees(nodes), seed, leaf_augmentation=leaves,
        shadow_negatives=shadows, exclude_real_classes=exclude_real, independent_draws=independent,
    )  # fmt: skip
    assert list(sampler.phrases) == sorted(set(sampler.phrases))
    for step in range(first, first + 20):
        expected = plain_draw(nodes, actions, seed, step, leaves, shadow_pools if shadows else [], independent)
        draw = sampler.draw(step)
        assert (draw.fixed, draw.random, draw.shadow) == expected
        for part, words in zip((draw.fixed_rows, draw.random_rows, draw.shadow_rows), expected, strict=True):
            assert [sampler.phrases[row] for row in part.rows] == [phrase for group in words for phrase in group]
            assert [b - a for a, b in itertools.pairwise(part.offsets)] == [len(group) for group in words]
