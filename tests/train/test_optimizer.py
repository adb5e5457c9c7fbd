"""Protects the fused SGD: within rounding what torch's plain loop over the parameters does, rates by group included."""

import torch

from ace_dist.config import TrainingConfig
from ace_dist.train.engine import build_optimizer


def test_fused_sgd_moves_as_the_plain_loop_does():
    start = [torch.randn(40, 30), torch.randn(17), torch.randn(5, 3)]
    settings = TrainingConfig(optimizer="sgd", momentum=0.9, nesterov=True, weight_decay=0.01)
    ours, plain = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    optimizer = build_optimizer([{"params": ours[:2], "lr": 0.1}, {"params": ours[2:], "lr": 0.03}], settings)
    reference = torch.optim.SGD(
        [{"params": plain[:2], "lr": 0.1}, {"params": plain[2:], "lr": 0.03}],
        momentum=0.9, nesterov=True, weight_decay=0.01, foreach=False,
    )  # fmt: skip
    for _ in range(4):
        for a, b in zip(ours, plain, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    for a, b, c in zip(ours, plain, start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # a fused multiply-add rounds once
        assert not torch.equal(a, c)
