"""How the benchmarks time: what they may say of a call on a CPU, and captures on a GPU that fail."""

import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import common


def test_on_a_cpu_there_is_one_time(capsys):
    """Competitors take turns equally often, and what ours loses is printed too."""
    order = []
    metrics = common.measure_in_turns({name: lambda n=name: order.append(n) for name in ("ours", "other")}, "cpu", 1e-3)
    assert all(list(m) == ["time"] and m["time"][0] == "us" and len(m["time"][1]) >= 7 for m in metrics.values())
    assert order[6:] == ["ours", "other"] * len(metrics["ours"]["time"][1])  # two warm-up calls and one to size each
    common.show("case", {"ours": {"time": ("us", [2.0, 4.0, 30.0])}, "other": {"time": ("us", [1.0])}})
    assert capsys.readouterr().out == "case time us: other 1 (0.25x), ours 4\n"


def test_a_repeated_video_shows_its_pictures_again_and_again(tmp_path):
    """Four pictures, grey from dark to light, three times, an even time apart."""
    pictures = [np.full((32, 48, 3), 60 * k, np.uint8) for k in range(4)]
    common.write_repeated_video(tmp_path / "v.mp4", iter(pictures), (48, 32), 10, 3, g="4")
    with av.open(str(tmp_path / "v.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [frame.time for frame in frames] == pytest.approx([k / 10 for k in range(12)])
    means = [frame.to_ndarray(format="rgb24").mean() for frame in frames]
    assert means == pytest.approx([0, 60, 120, 180] * 3, abs=5)


@pytest.mark.gpu
def test_a_capture_that_fails_costs_itself_alone(capsys):
    """A backward pass is captured alone; what reads from the host is named, and what comes after it is measured."""
    with common.side_stream("cuda"):
        x = torch.randn(64, 64, device="cuda", requires_grad=True)
        outcome = (x @ x).square().sum()
        reading = common.gpu_metrics("reading", lambda: (x * torch.rand_like(x)).sum().item(), launches=False)
        assert "graph_time" not in reading and "reading: no CUDA graph" in capsys.readouterr().out
        for call in (
            lambda: torch.nn.functional.dropout(x.detach()),
            lambda: torch.autograd.grad(outcome, x, retain_graph=True),
        ):
            found = common.gpu_metrics("good", call, launches=True)
            assert min(found["graph_time"][1]) > 0 and found["launches"][1][0] >= 1
        assert torch.rand(1000, device="cuda").unique().numel() > 900
