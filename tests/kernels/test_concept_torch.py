"""How plain torch adds up classes on a GPU, run on the CPU: `embedding_bag` adds one row after the other on both."""

import pytest
import torch
from ace_kernels.concept_layout import build_layout
from ace_kernels.concept_problem import Problem
from ace_kernels.concept_torch import bag_sums, bags_on_device, class_bags, means_on_device
from kernel_reference import ON_CPU, class_offsets, unit64

pytestmark = pytest.mark.parametrize("device", ON_CPU, indirect=True)
COSINE_ERROR = 4e-6  # what the operators promise: 4e-6 / τ in a logit


def both_ways_to_cut(rows, offsets, index=None):
    """Bags from offsets on the CPU, whose sizes are known, and from offsets on a device, which nobody reads."""
    layout = build_layout(rows, [offsets], None if index is None else [index])
    return class_bags(Problem(rows, rows, None, layout, 1.0)), bags_on_device(offsets, layout.positions)


@pytest.mark.parametrize("sizes", [(5, 1, 1000), (10_000, 2), (32, 64, 31, 33)])
def test_means_of_equal_phrases_do_not_drift(sizes):
    """The largest error of a mean of K equal unit vectors, relative to it."""
    rows, offsets = torch.ones(sum(sizes), 13), class_offsets(sizes)
    for bags in both_ways_to_cut(rows, offsets):
        means = means_on_device(rows, None, bags, torch.float32).double()
        assert (means * 13**0.5 - 1).abs().max() < COSINE_ERROR
    one_level = bag_sums(torch.arange(len(rows)), rows * 13**-0.5, offsets, None).double() / offsets.diff()[:, None]
    if max(sizes) >= 1000:
        assert (one_level * 13**0.5 - 1).abs().max() > COSINE_ERROR, "the test must be able to fail"


@pytest.mark.parametrize("sizes", [(1,), (1, 7, 2, 40), (3, 300, 64), (1,) * 70])
@pytest.mark.parametrize("height", [1, 50, 1000])
def test_means_equal_float64(sizes, height):
    """In order and by rows of a table that is smaller and larger than the classes together."""
    offsets, table, own = class_offsets(sizes), torch.randn(height, 13), torch.randn(sum(sizes), 13)
    index = torch.randint(height, (sum(sizes),))
    for rows, places in ((own, None), (table, index)):
        used = rows if places is None else rows[places]
        exact = torch.stack([part.mean(0) for part in unit64(used.double()).split(list(sizes))])
        for bags in both_ways_to_cut(rows, offsets, places):
            ours = means_on_device(rows, places, bags, torch.float32)
            assert (ours.double() - exact).norm(dim=1).max() < COSINE_ERROR


@pytest.mark.parametrize("offsets", [[0, 2, 1, 3], [0, 2, 2, 3], [1, 2, 3], [0, 1, 4]])
def test_offsets_on_a_device_are_asserted(offsets):
    with pytest.raises(RuntimeError, match="offsets must rise from 0 to S"):
        bags_on_device(torch.tensor(offsets), 3)
