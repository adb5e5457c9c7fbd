"""Protects the arithmetic of a profile: who a moment belongs to, on a CPU and on a GPU, and the table by hand."""

from types import SimpleNamespace

import pytest
import torch

from ace_dist.train.profile import build_recorder, communication_named, parts_table, seconds_by_part
from ace_dist.utils.parts import part


def event(name, start, end, *kernels, device="CPU"):
    """An event of torch's profiler, in microseconds; `kernels` are the durations of what it launched."""
    return SimpleNamespace(
        name=name, time_range=SimpleNamespace(start=start, end=end), device_type=getattr(torch.device_type, device),
        kernels=[SimpleNamespace(duration=duration) for duration in kernels],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def device_type(monkeypatch):
    from torch._C._autograd import DeviceType

    monkeypatch.setattr(torch, "device_type", DeviceType, raising=False)


STEPS = [
    ("part: before", 0, 50),
    ("ProfilerStep#3", 100, 1100),
    ("part: data", 100, 300),
    ("part: forward", 400, 1000),
    ("part: head", 500, 600),
    ("part: head", 600, 700),
    ("ProfilerStep#4", 1100, 1400),
    ("part: data", 1200, 1300),
]


def test_a_moment_belongs_to_the_innermost_part():
    """Microseconds by hand: what no part has is `other`, what is outside of the steps does not count."""
    seconds = seconds_by_part(event(*each) for each in reversed(STEPS))
    micro = {name: [round(1e6 * value) for value in values] for name, values in seconds.items()}
    assert micro == {"other": [200, 200], "data": [200, 100], "forward": [400, 0], "head": [200, 0]}


def test_on_a_gpu_a_part_has_the_kernels_that_it_launched():
    """Whichever thread launched them, and however late they ran; the GPU's own copy of a range is no part."""
    launches = [
        ("aten::mm", 450, 460, 30, 20),
        ("aten::mm", 510, 520, 400),  # in the head, though it runs longer than the head's range
        ("aten::add", 1050, 1060, 5),  # in no part
        ("aten::mm", 20, 30, 1000),  # before the first step
    ]
    on_gpu = event("part: head", 700, 1100, device="CUDA")
    seconds = seconds_by_part([*(event(*each) for each in STEPS + launches), on_gpu])
    micro = {name: [round(1e6 * value) for value in values] for name, values in seconds.items()}
    assert micro == {"other": [1000 - 450, 300], "data": [0, 0], "forward": [50, 0], "head": [400, 0]}


def test_the_profilers_own_events():
    """A recording of two steps after one that warms up: parts of the steps alone, nested ones apart."""
    with build_recorder(torch.device("cpu"), 2, warmup=1, details=False) as recorder:
        for _ in range(3):
            with part("forward"):
                torch.ones(200, 200) @ torch.ones(200, 200)
                with part("head"):
                    torch.ones(200, 200) @ torch.ones(200, 200)
            recorder.step()
    seconds = seconds_by_part(recorder.events())
    assert seconds.keys() == {"other", "forward", "head"}
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())


def test_collectives_are_as_they_were_after_a_recording(ranks):
    from deepspeed.comm import comm

    before = dict(vars(comm.cdb))
    with communication_named():
        assert "all_reduce" in vars(comm.cdb)
    assert dict(vars(comm.cdb)) == before


def test_the_table_by_hand():
    """Medians, shares of the median step, rates of forward and backward products."""
    seconds = {"trained blocks": [0.2, 0.4, 0.2], "backward": [0.6, 0.6, 1.6], "other": [0.2, 0.0, 0.2]}
    flops = {"trained blocks": (10**12, 3 * 10**12), "loss": (5, 6 * 10**12)}
    lines = [line.split() for line in parts_table(seconds, flops).splitlines()]
    assert lines[0] == ["part", "of", "a", "step", "ms", "share", "TFLOP/s"]
    assert lines[1] == ["backward", "600.00", "60.0%", "15.0000"]
    assert lines[2] == ["trained", "blocks", "200.00", "20.0%", "5.0000"]
    assert lines[4][:2] == ["whole", "1000.00"] and lines[4][-2:] == ["3", "step(s)"]
