"""A layout says what offsets and rows say: the same bits, checked when it is built; launches are planned once."""

import os

import numpy
import pytest
import torch
from ace_kernels import (
    ConceptLayout,
    KernelInputError,
    concept_cross_entropy,
    concept_cross_entropy_sets,
    concept_similarity,
    concept_similarity_sets,
)
from kernel_reference import class_offsets, value_and_gradients

SIZES, SHADOW_SIZES, HEIGHT = [(2, 1, 4), (1, 3, 1)], (1, 2, 1), 9


def label_sets():
    """Offsets and rows of two label sets and of shadow negatives, in any order of the table."""
    rows = [torch.randint(HEIGHT, (sum(sizes),)) for sizes in (*SIZES, SHADOW_SIZES)]
    return [class_offsets(sizes) for sizes in SIZES], rows[:2], class_offsets(SHADOW_SIZES), rows[2]


def inputs(device, batch=5, dtype=torch.float32):
    video, table = (torch.randn(n, 12, device=device).to(dtype) for n in (batch, HEIGHT))
    return video, table, torch.randint(3, (batch,), device=device)


@pytest.mark.parametrize("kind", ["tensors", "lists"])
def test_a_layout_gives_the_bits_of_its_tensors(device, kind):
    """Losses and gradients, whatever the integers came in, and again for the next step's layout."""
    video, table, labels = inputs(device)
    for _ in range(2):
        offsets, rows, shadow_offsets, shadow_rows = label_sets()
        given = offsets, rows, shadow_offsets, shadow_rows
        if kind == "lists":
            given = (
                [x.tolist() for x in offsets],
                [x.tolist() for x in rows],
                shadow_offsets.tolist(),
                shadow_rows.tolist(),
            )
        layout = ConceptLayout.build(*given, height=HEIGHT).to(device)

        def by_layout(v, t):
            return concept_cross_entropy_sets(v, t, layout, labels, 0.1).sum()  # noqa: B023

        def by_tensors(v, t):
            return concept_cross_entropy_sets(
                v, t, offsets, labels, 0.1, shadow_offsets=shadow_offsets, set_rows=rows, shadow_rows=shadow_rows  # noqa: B023
            ).sum()  # fmt: skip

        ours, theirs = (value_and_gradients(way, video, table) for way in (by_layout, by_tensors))
        assert torch.equal(ours[0], theirs[0]) and all(map(torch.equal, ours[1], theirs[1]))


def test_similarities_take_layouts_too(device):
    """Of sets with as many classes as they like, in order or by rows; a loss of one set without shadow negatives."""
    video, table, labels = inputs(device)
    offsets, rows = [class_offsets((2, 1)), class_offsets((3, 1, 2))], [torch.randint(HEIGHT, (n,)) for n in (3, 6)]
    for index in (rows, None):
        by_layout = concept_similarity_sets(video, table, ConceptLayout.build(offsets, index, height=HEIGHT), 0.1)
        by_tensors = concept_similarity_sets(video, table, offsets, 0.1, index)
        assert [x.shape[1] for x in by_layout] == [2, 3] and all(map(torch.equal, by_layout, by_tensors))
    one = ConceptLayout.build([class_offsets((2, 3, 4))])
    assert torch.equal(concept_similarity(video, table, one, 0.1), concept_similarity(video, table, one.offsets, 0.1))
    ours, theirs = (concept_cross_entropy(video, table, given, labels, 0.1) for given in (one, one.offsets))
    assert torch.equal(ours, theirs) and ours.shape == ()


def test_a_second_table_of_shadow_negatives(device):
    video, table, labels = inputs(device)
    shadow, offsets, shadow_offsets = (
        torch.randn(4, 12, device=device),
        class_offsets((2, 3, 4)),
        class_offsets((1, 2, 1)),
    )
    layout = ConceptLayout.build([offsets], None, shadow_offsets, height=HEIGHT, shadow_height=4)
    exact = concept_cross_entropy(video, table, offsets, labels, 0.1, shadow, shadow_offsets)
    assert torch.equal(exact, concept_cross_entropy(video, torch.cat([table, shadow]), layout, labels, 0.1))
    assert torch.equal(exact, concept_cross_entropy(video, table, layout, labels, 0.1, shadow))
    with pytest.raises(KernelInputError, match=r"the layout is of tables of 9 \+ 4 rows, got 8 \+ 5"):
        concept_cross_entropy(video, table[:8], layout, labels, 0.1, torch.cat([table[8:], shadow]))


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("which", [(0, 1, 2), (0, 1), (0, 2), (2,)])
def test_two_tables_give_the_bits_of_one(device, rows, which):
    """Loss and gradients of text and shadow text, as many as are asked for; tables of two types are joined."""
    video, table, labels = inputs(device)
    shadow, offsets, shadow_offsets = (
        torch.randn(4, 12, device=device),
        class_offsets((2, 3, 4)),
        class_offsets((1, 2, 1)),
    )
    index = (torch.randint(9, (9,)), torch.randint(4, (4,))) if rows else (None, None)
    joined = [offsets], None if not rows else [index[0]], shadow_offsets, None if not rows else index[1]
    layout = ConceptLayout.build(*joined, height=9, shadow_height=4)
    leaves = [x.clone().requires_grad_(place in which) for place, x in enumerate((video, table, shadow))]
    apart = concept_cross_entropy(leaves[0], leaves[1], offsets, labels, 0.1, leaves[2], shadow_offsets, *index)
    whole = concept_cross_entropy(leaves[0], torch.cat(leaves[1:]), layout, labels, 0.1)
    assert torch.equal(apart, whole)
    wanted = [leaves[place] for place in which]
    expected = torch.autograd.grad(whole, wanted)
    for differentiable in (True, False):  # the registered operator, which reads one table, and the direct way
        grads = torch.autograd.grad(apart, wanted, create_graph=differentiable, retain_graph=True)
        assert all(map(torch.equal, grads, expected))
    mixed = concept_cross_entropy(video, table, offsets, labels, 0.1, shadow.double(), shadow_offsets, *index)
    assert abs(mixed - whole) < 1e-5


def test_layouts_are_copied_to_a_device_once(device):
    layout = ConceptLayout.build(*label_sets(), height=HEIGHT)
    there = layout.to(device)
    assert there is layout.to(device) and there.to(device) is there and there.offsets.device.type == device.type
    for mine, theirs in zip(
        (layout.offsets, layout.rows, *layout.uses), (there.offsets, there.rows, *there.uses), strict=True
    ):
        assert torch.equal(mine, theirs.cpu()) and theirs.data_ptr() % 16 == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"set_offsets": [[0, 2, 2]]}, "class 1 has no row in text"),
        ({"set_offsets": [[0, 3, 2]]}, "offsets of text must rise from 0 to 2"),
        ({"set_offsets": [[1, 2]]}, "offsets of text must rise from 0 to 2"),
        ({"set_offsets": []}, "0 sets of offsets need as many sets of rows, and one at least"),
        ({"set_rows": [[0, 1], [1, 2]]}, "1 sets of offsets need as many sets of rows"),
        ({"set_rows": [[0, 4]]}, r"rows of text must lie in \[0, 4\), got 0 to 4"),
        ({"set_rows": [[-1, 1]]}, r"rows of text must lie in \[0, 4\), got -1 to 1"),
        ({"shadow_offsets": [0, 1], "shadow_rows": [0]}, "shadow_offsets describes 1 classes, class_offsets 2"),
        ({"shadow_offsets": [0, 1, 2]}, "shadow_offsets and shadow_rows"),
        ({"set_offsets": [[0.0, 1.5, 2.0]]}, "integers"),
        ({"set_offsets": [[0]]}, "offsets and rows must be . integers or more"),
        ({"set_rows": [numpy.zeros(0, numpy.int64)]}, "offsets and rows must be . integers or more"),
    ],
)
def test_wrong_layouts_are_refused_when_they_are_built(changes, words):
    with pytest.raises(KernelInputError, match=words):
        ConceptLayout.build(**({"set_offsets": [[0, 1, 2]], "set_rows": [[0, 1]], "height": 4} | changes))


def test_layouts_that_do_not_fit_a_call_are_refused(device):
    video, table, labels = inputs(device)
    shadowed = ConceptLayout.build(*label_sets(), height=HEIGHT)
    with pytest.raises(KernelInputError, match=r"the layout is of tables of 9 rows, got 8 \+ 0"):
        concept_cross_entropy_sets(video, table[:8], shadowed, labels, 0.1)
    with pytest.raises(KernelInputError, match="give no others with it"):
        concept_cross_entropy_sets(video, table, shadowed, labels, 0.1, set_rows=[labels])
    with pytest.raises(KernelInputError, match="a similarity has none"):
        concept_similarity(video, table, shadowed, 0.1)
    with pytest.raises(KernelInputError, match="the same C\\+1 offsets"):
        concept_cross_entropy(
            video, table, ConceptLayout.build([[0, 1], [0, 1, 2]], [[0], [1, 2]], height=9), labels, 0.1
        )


def test_a_compiled_step_takes_a_layout(device):
    """`torch.compile(fullgraph=True)`: the same bits, no graph break."""
    video, table, labels = inputs(device)
    layout = ConceptLayout.build(*label_sets(), height=HEIGHT).to(device)

    def loss(v, t):
        return concept_cross_entropy_sets(v * 1.0, t, layout, labels, 0.1).sum()

    eager = value_and_gradients(loss, video, table)
    compiled = value_and_gradients(torch.compile(loss, fullgraph=True, backend="aot_eager"), video, table)
    assert torch.equal(eager[0], compiled[0]) and all(map(torch.equal, eager[1], compiled[1]))


def test_a_plan_serves_every_draw_and_other_memory(device):
    """Tables of other heights, more positions, memory off the 16 bytes that a kept kernel wants: right each time."""
    if os.environ["ACE_KERNELS"] == "torch":
        pytest.skip("about the Triton kernels")
    from ace_kernels import concept_triton

    video, _, labels = inputs(device, dtype=torch.bfloat16)
    concept_triton.build_forward.cache_clear()
    for height in (9, 7, 16, 9):
        rows = [torch.randint(height, (sum(sizes) + height,)) for sizes in SIZES]
        offsets = [torch.tensor([0, 2, 3, sum(sizes) + height]) for sizes in SIZES]
        own = torch.randn(height + 1, 12, device=device).bfloat16()
        for text in (own[:height], own[1:]):  # a row has 24 bytes
            exact = [
                concept_similarity(video.double(), text[index].double(), one, 0.1)
                for one, index in zip(offsets, rows, strict=True)
            ]
            ours = concept_cross_entropy_sets(video, text, offsets, labels, 0.1, set_rows=rows)
            expected = torch.stack([torch.nn.functional.cross_entropy(logits, labels) for logits in exact])
            assert (ours - expected).abs().max() < 1e-4
    assert concept_triton.build_forward.cache_info().misses == 2  # one plan for all losses, one for all similarities
