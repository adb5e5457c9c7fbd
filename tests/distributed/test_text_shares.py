"""Text layers that train: each rank encodes its share of the phrases; loss and gradients are those of one rank."""

import os

import pytest
import torch
import torch.distributed as dist
from ports import free_port
from torch import multiprocessing

from ace_dist.concepts import ConceptSampler
from ace_dist.config import MethodConfig, TextConfig, VideoConfig
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.objectives import ConceptObjective, total_loss

VIDEO = VideoConfig(width=32, depth=1, heads=2, patch=8, image_size=16, embed_dim=16, trained_blocks=1, drop_path=0.0)


def step(changes, actions, trees, seed, clips, labels, rank, world):
    """Loss, gradients of this rank's clips, and how many phrases it encoded."""
    torch.manual_seed(seed)
    model = DualEncoder(VIDEO, TextConfig(width=32, depth=2, heads=2, embed_dim=16, **changes)).double()
    sampler = ConceptSampler(actions, trees, seed=seed)
    objective = ConceptObjective(model, sampler, MethodConfig(temperature=0.1))
    encoded, trainable = [], model.text.trainable
    model.text.trainable = lambda frozen: encoded.append(len(frozen.lengths)) or trainable(frozen)
    share = slice(rank * len(clips) // world, (rank + 1) * len(clips) // world)
    loss = total_loss(objective(clips[share], labels[share], sampler.draw(seed)))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, sum(encoded)


def one_rank(rank, world, port, out, *arguments):
    """A rank of the group: what DeepSpeed makes of loss and gradients, their means over ranks."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    loss, gradients, encoded = step(*arguments, rank, world)
    for tensor in (loss, *gradients.values()):
        dist.all_reduce(tensor)
        tensor /= world
    counts = [None] * world
    dist.all_gather_object(counts, encoded)
    if rank == 0:
        torch.save({"loss": loss, "gradients": gradients, "encoded": counts}, out)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"trained_layers": 1}, {"prompt_tokens": 2}])
def test_two_ranks_share_the_phrases_and_change_nothing(changes, actions, trees, tmp_path):
    """Both ranks together encode each phrase once, but for one that fills the last share."""
    seed = int(torch.randint(1000, ()))
    clips, labels = torch.randn(4, 4, 3, 16, 16).double(), torch.randint(len(actions), (4,))
    arguments = (changes, actions, trees, seed, clips, labels)
    loss, gradients, encoded = step(*arguments, 0, 1)
    multiprocessing.spawn(one_rank, (2, free_port(), tmp_path / "found.pt", *arguments), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert max(found["encoded"]) <= (encoded + 1) // 2 < encoded
    torch.testing.assert_close(found["loss"], loss)
    assert found["gradients"].keys() == gradients.keys() and any(name.startswith("text") for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-6, atol=1e-9)
