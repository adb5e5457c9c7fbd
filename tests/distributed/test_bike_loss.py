"""BIKE's loss goes over the clips of all ranks: its value and gradient are those of one rank with the whole batch."""

import os

import pytest
import torch
import torch.distributed as dist
from ports import free_port
from torch import multiprocessing

from ace_dist.objectives.bike import symmetric_kl
from ace_dist.utils.distributed import gather_rows


def loss_of(weight, clips, labels, texts):
    """The loss of clips that a linear map embeds."""
    labels = gather_rows(labels)
    return symmetric_kl(gather_rows(clips @ weight) @ texts[labels].T, labels)


def one_rank(rank, world, port, out, weight, clips, labels, texts):
    """This rank's share; writes the loss and the gradient as DeepSpeed averages it over ranks."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    weight.requires_grad_()
    loss = loss_of(weight, clips.chunk(world)[rank], labels.chunk(world)[rank], texts)
    loss.backward()
    dist.all_reduce(weight.grad)
    if rank == 0:
        torch.save({"loss": loss.detach(), "gradient": weight.grad / world}, out)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_have_the_loss_and_gradient_of_one(tmp_path):
    """Without gradients through the gathering, or with those of one rank alone, the gradient would differ."""
    clips, labels, texts = torch.randn(8, 5), torch.randint(0, 3, (8,)), torch.randn(3, 6)
    weight = torch.randn(5, 6, requires_grad=True)
    loss = loss_of(weight, clips, labels, texts)
    loss.backward()
    shared = (2, free_port(), tmp_path / "found.pt", weight.detach().clone(), clips, labels, texts)
    multiprocessing.spawn(one_rank, shared, nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    torch.testing.assert_close(found["loss"], loss.detach())
    torch.testing.assert_close(found["gradient"], weight.grad)
