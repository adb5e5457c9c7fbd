"""Arguments that cannot be right: by shape and type everywhere, by value on the CPU, by assertions on a GPU."""

import os
import subprocess
import sys

import pytest
import torch
from ace_kernels import KernelInputError, concept_cross_entropy, concept_cross_entropy_sets, concept_similarity
from kernel_reference import ON_CPU, ON_GPU, class_offsets


def right_arguments(device):
    """Three videos and three classes of two phrases; offsets and labels as training gives them."""
    return {
        "video": torch.randn(3, 8, device=device),
        "text": torch.randn(6, 8, device=device),
        "offsets": torch.tensor([0, 2, 4, 6]),
        "labels": torch.tensor([0, 1, 2], device=device),
        "temperature": 0.02,
        "shadow": None,
        "shadow_offsets": None,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offsets": torch.tensor([0.0, 2, 4, 6])}, "integers"),
        ({"text": torch.randn(6, 9)}, "video has width 8, text has width 9"),
        ({"text": torch.ones(6, 8, dtype=torch.int64)}, "floating-point"),
        ({"text": torch.empty(6, 8, device="meta")}, "video is on (cpu|cuda:0), text on meta"),
        ({"labels": torch.tensor([0, 1])}, "labels must be 3 integers"),
        ({"labels": torch.empty(3, dtype=torch.int64, device="meta")}, "labels are on meta, video is on (cpu|cuda:0)"),
        ({"temperature": 0.0}, "temperature"),
        ({"shadow": torch.randn(3, 8)}, "together"),
        ({"shadow": torch.randn(3, 8), "shadow_offsets": torch.tensor([0, 1, 3])}, "2 classes"),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_named(change, words, device):
    """Every argument that cannot be right raises its own message."""
    kept = {key: x.to(device) for key, x in change.items() if isinstance(x, torch.Tensor) and not x.is_meta}
    with pytest.raises(KernelInputError, match=words):
        concept_cross_entropy(*(right_arguments(device) | change | kept).values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offsets": torch.tensor([0, 2, 2, 6])}, "class 1 has no row"),
        ({"offsets": torch.tensor([0, 4, 2, 6])}, "must rise from 0 to 6"),
        ({"offsets": torch.tensor([1, 2, 4, 6])}, "must rise from 0 to 6"),
        ({"offsets": torch.tensor([0, 2, 4, 5])}, "must rise from 0 to 6"),
        (
            {"shadow": torch.randn(3, 8), "shadow_offsets": torch.tensor([0, 1, 1, 3])},
            "class 1 has no row in shadow_text",
        ),
    ],
)
def test_offsets_on_the_cpu_are_checked_by_value(change, words, device):
    """Also when the videos are on a GPU."""
    arguments = right_arguments(device) | change
    if arguments["shadow"] is not None:
        arguments["shadow"] = arguments["shadow"].to(device)
    with pytest.raises(KernelInputError, match=words):
        concept_cross_entropy(*arguments.values())


@pytest.mark.parametrize("device", ON_CPU, indirect=True)
def test_labels_are_checked_by_value_on_the_cpu_alone(device):
    arguments = right_arguments(device) | {"labels": torch.tensor([0, 3, 1])}
    with pytest.raises(KernelInputError, match=r"labels must lie in \[0, 3\)"):
        concept_cross_entropy(*arguments.values())


def test_rows_on_the_cpu_are_checked_by_value(device):
    """Also when the table is on a GPU; and label sets that do not fit together are named."""
    video, text = torch.randn(2, 4, device=device), torch.randn(3, 4, device=device)
    labels = torch.tensor([0, 1], device=device)
    with pytest.raises(KernelInputError, match=r"rows of text must lie in \[0, 3\), got 0 to 3"):
        concept_similarity(video, text, class_offsets((1, 1)), 0.1, torch.tensor([0, 3]))
    with pytest.raises(KernelInputError, match="needs rows too"):
        concept_cross_entropy(
            video, text, class_offsets((1, 2)), labels, 0.1,
            shadow_offsets=class_offsets((1, 1)), shadow_rows=torch.tensor([0, 1]),
        )  # fmt: skip
    with pytest.raises(KernelInputError, match="the same C\\+1 offsets"):
        concept_cross_entropy_sets(video, text, [class_offsets((1, 2)), class_offsets((3,))], labels, 0.1)
    with pytest.raises(KernelInputError, match="no video"):
        concept_cross_entropy(video[:0], text, class_offsets((1, 2)), labels[:0], 0.1)


@pytest.mark.parametrize("device", ON_GPU, indirect=True)
@pytest.mark.parametrize(
    ("change", "by_triton", "by_torch"),
    [
        ({"labels": [0, 3]}, "labels must lie in [0, C)", "out of bounds"),
        ({"rows": [0, 1, 3]}, "rows must lie inside the table", "out of bounds"),
        ({"offsets": [0, 2, 1, 3]}, "offsets must rise from 0 to S", "offsets must rise from 0 to S"),
    ],
)
def test_values_on_a_gpu_are_asserted_there(device, change, by_triton, by_torch):
    """The message names the operator. An assertion ends the CUDA context, so each case has a process of its own."""
    values = {"offsets": [0, 1, 2, 3], "labels": [0, 2], "rows": [0, 1, 2]} | change
    code = (
        "import torch; from ace_kernels import concept_cross_entropy\n"
        "offsets, labels, rows = (torch.tensor(x, device='cuda') for x in "
        f"({values['offsets']}, {values['labels']}, {values['rows']}))\n"
        "video, text = (torch.randn(n, 8, device='cuda') for n in (2, 3))\n"
        "concept_cross_entropy(video, text, offsets, labels, 1.0, rows=rows)\n"
        "torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    words = by_triton if os.environ["ACE_KERNELS"] == "triton" else by_torch
    assert done.returncode and words in done.stderr + done.stdout, done.stderr[-2000:]
