"""Captured training passes, on the CPU with a stand-in for CUDA's graphs, and on a GPU with the real ones."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from ace_dist.config import VideoConfig
from ace_dist.models import graphs
from ace_dist.models.dual_encoder import build_video_tower
from ace_dist.models.graphs import GraphedFunction

TINY = {"width": 32, "depth": 4, "heads": 2, "patch": 8, "image_size": 32, "frames": 4, "embed_dim": 16}


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """On the CPU a replay runs the function again and writes into the memory that the capture returned."""
    if request.param == "cuda":
        return "cuda"

    def record(run, pool):
        result = run()

        def replay():
            with torch.enable_grad():
                again = run()
            with torch.no_grad():
                for place, value in zip(result, again, strict=True):
                    place.copy_(value)

        return SimpleNamespace(replay=replay, pool=lambda: None), result

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs, "side_stream", nullcontext)
    return "cpu"


def towers(device, **settings):
    """Two towers of equal weights, the second one launched by graphs."""
    pair = [build_video_tower(VideoConfig(**TINY, **settings)).to(device) for _ in range(2)]
    with torch.no_grad():
        for parameter in pair[0].parameters():
            parameter.normal_(std=0.1)
    pair[1].load_state_dict(pair[0].state_dict())
    pair[1].graphs = GraphedFunction(pair[1].encode, pair[1])
    return [tower.train() for tower in pair]


def trained(tower):
    return [parameter for parameter in tower.parameters() if parameter.requires_grad]


def test_accumulated_steps_equal_those_without(device):
    """Two micro-batches a step with stochastic depth; SGD moves the weights in place; bytes are clips, too."""
    pair = towers(device, drop_path=0.4)
    for tower in pair:
        tower.patch_embed.normalisation = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    optimizers = [torch.optim.SGD(trained(tower), lr=0.1, momentum=0.9) for tower in pair]
    for step in range(3):
        for micro in range(2):
            video = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, device=device)
            weight = torch.randn(3, 16, device=device)
            outputs = []
            for tower in pair:
                tower.set_step(7, step, micro, 2)
                outputs.append(tower(video))
                (outputs[-1] * weight).sum().backward()
            assert torch.equal(*outputs)
        for one, other in zip(*map(trained, pair), strict=True):
            assert torch.equal(one.grad, other.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert pair[1].graphs.captured.calls == 6


def test_other_shapes_and_evaluation_run_without(device):
    pair = towers(device, drop_path=0.0)
    for clips in (2, 3, 1, 2):
        video = torch.randn(clips, 4, 3, 32, 32, device=device)
        assert torch.equal(*[tower(video) for tower in pair])
    assert pair[1].graphs.captured.calls == 2
    video = torch.randn(2, 4, 3, 32, 32, device=device)
    with torch.no_grad():
        assert torch.equal(*[tower(video) for tower in pair])
    assert torch.equal(*[tower.eval()(video) for tower in pair])
    assert pair[1].graphs.captured.calls == 2


def test_written_weights_are_seen(device):
    """Trained ones are read where they lie; moved ones, and frozen ones, of which copies may exist, captured again."""
    pair = towers(device, drop_path=0.0)
    video = torch.randn(2, 4, 3, 32, 32, device=device)
    pair[1](video).sum().backward()
    first = pair[1].graphs.captured
    with torch.no_grad():
        for tower in pair:
            for parameter in trained(tower):
                parameter.mul_(0.5)
    assert torch.equal(*[tower(video) for tower in pair]) and pair[1].graphs.captured is first
    with torch.no_grad():
        for tower in pair:
            tower.blocks[0].mlp.fc1.weight.mul_(0.5)
    assert torch.equal(*[tower(video) for tower in pair]) and pair[1].graphs.captured is not first
    first = pair[1].graphs.captured
    pair[1].head.weight.data = pair[1].head.weight.data.clone()
    assert torch.equal(*[tower(video) for tower in pair]) and pair[1].graphs.captured is not first


def test_a_backward_pass_after_the_next_forward_pass_is_refused(device):
    tower, video = towers(device, drop_path=0.0)[1], torch.randn(2, 4, 3, 32, 32, device=device)
    first, _ = tower(video), tower(video)
    with pytest.raises(AssertionError, match="another forward pass"):
        first.sum().backward()


def test_a_capture_that_fails_says_so_once_and_training_goes_on(device, monkeypatch, capsys):
    def refuse(run, pool):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "record", refuse)
    pair, video = towers(device, drop_path=0.0), torch.randn(2, 4, 3, 32, 32, device=device)
    for _ in range(2):
        assert torch.equal(*[tower(video) for tower in pair])
    said = capsys.readouterr().out
    assert said.count("CUDA graphs: off") == 1 and "operation not permitted" in said and "more" not in said


def test_a_replay_that_is_wrong_is_not_trained_with(device, monkeypatch, capsys):
    """Graphs are trusted after their first replay: here one gradient is off by a twentieth."""
    record = graphs.record

    def off(run, pool):
        graph, result = record(run, pool)
        replay = graph.replay

        def wrong():
            replay()
            result[-1].mul_(1.05)

        return SimpleNamespace(replay=wrong, pool=graph.pool), result

    monkeypatch.setattr(graphs, "record", off)
    pair, video = towers(device, drop_path=0.0), torch.randn(2, 4, 3, 32, 32, device=device)
    assert torch.equal(*[tower(video) for tower in pair])
    assert "CUDA graphs: off" in (said := capsys.readouterr().out) and "results of a replay differ" in said
