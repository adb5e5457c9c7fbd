"""Host time of the concept operators: what Python, torch and Triton spend on a call, whatever the GPU does.

On a CPU every kernel is compiled for an H100, found and specialised as at every launch; only the launch itself is a
no-op, and blocks of calls are timed by the thread's own clock, as machines are shared. On a GPU the launches are real,
nothing waits for them, and the clock is the wall's. `empty_function` is an autograd function that only allocates its
results: what torch itself takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from ace_kernels import (
    ConceptLayout,
    backend,
    concept,
    concept_cross_entropy,
    concept_cross_entropy_sets,
    concept_similarity,
)
from common import Row
from torch import Tensor
from triton.backends.compiler import GPUTarget

TEMPERATURE = 0.02
BLOCK, BLOCKS, WARMUP = 20, 60, 3  # calls of a timed block (a GPU's queue holds their launches), and blocks
DRAWS = 260  # different draws of label sets, more than any cache holds, as every training step has its own


@dataclass(frozen=True)
class Case:
    """An operator at a size: its forward, and the inputs that take gradients; none where there is no backward."""

    operator: str
    variant: str
    forward: Callable[[], Any]
    inputs: tuple[Tensor, ...]


@contextmanager
def no_launches() -> Iterator[None]:
    """Triton's path on CPU tensors with launches that do nothing; values on the CPU count as on a GPU: not checked."""
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=lambda source, metadata: lambda *arguments: None,
        utils=SimpleNamespace(
            load_binary=lambda *arguments: (1, 1, 32, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 232448},
        ),
    )
    triton.runtime.driver.set_active(driver)
    with (
        patch.object(backend, "cached_choice", lambda setting, kind: "triton"),
        patch.object(concept, "check_label_values", lambda labels, classes: None),
    ):
        yield


class Empty(torch.autograd.Function):
    """Results of the right shape that nobody computes."""

    @staticmethod
    def forward(ctx: Any, video: Tensor, text: Tensor) -> Tensor:
        ctx.save_for_backward(video, text)
        return video.new_empty(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors)


def cases(videos: int, classes: int, synonyms: int, width: int, device: str) -> Iterator[Case]:
    """The three operators; the sets as a training step calls them, over one table with rows that differ every time."""
    phrases = classes * synonyms
    video, text, shadow = (torch.empty(n, width, device=device).normal_() for n in (videos, phrases, phrases))
    labels = torch.randint(classes, (videos,), device=device)
    offsets = torch.arange(0, phrases + 1, synonyms)
    inputs = tuple(x.requires_grad_() for x in (video, text, shadow))
    trained = phrases < 10_000
    trained = phrases < 10_000
    draws = [[torch.randint(phrases, (phrases,)) for _ in range(3)] for _ in range(DRAWS * trained)]
    steps = iter(range(10**9))

    arrays, starts = [[rows.numpy() for rows in draw] for draw in draws], offsets.tolist()

    def build_layout() -> ConceptLayout:
        *rows, shadow_rows = arrays[next(steps) % DRAWS]
        return ConceptLayout.build([starts, starts], rows, starts, shadow_rows, phrases, device=video.device)

    def similarity() -> Tensor:
        return concept_similarity(video, text, offsets, TEMPERATURE)

    def cross_entropy() -> Tensor:
        return concept_cross_entropy(video, text, offsets, labels, TEMPERATURE, shadow, offsets)

    def sets_of_tensors() -> Tensor:
        *rows, shadow_rows = draws[next(steps) % DRAWS]
        return concept_cross_entropy_sets(
            video, text, [offsets, offsets], labels, TEMPERATURE,
            shadow_offsets=offsets, set_rows=rows, shadow_rows=shadow_rows,
        )  # fmt: skip

    layouts = [build_layout() for _ in draws]

    def sets() -> Tensor:
        return concept_cross_entropy_sets(video, text, layouts[next(steps) % DRAWS], labels, TEMPERATURE)

    yield Case("similarity", "ours", similarity, inputs[:2])
    yield Case("cross_entropy_shadow", "ours", cross_entropy, inputs)
    if trained:
        yield Case("cross_entropy_sets", "ours", sets, inputs[:2])
        yield Case("cross_entropy_sets", "ours_without_layout", sets_of_tensors, inputs[:2])
        yield Case("layout", "ours", build_layout, ())
    yield Case("cross_entropy_sets", "empty_function", lambda: Empty.apply(video, text), inputs[:2])


def host_rows(case: Case, device: str, place: tuple[str, float], config: dict[str, Any]) -> list[Row]:
    """Microseconds of host time of the forward and of the backward of a case."""
    clock = time.perf_counter_ns if device == "cuda" else time.thread_time_ns
    weight = torch.randn_like(case.forward()) if case.inputs else None
    times: dict[str, list[float]] = {"forward": [], "backward": []}
    for block in range(WARMUP + BLOCKS):
        started = clock()
        outcomes = [case.forward() for _ in range(BLOCK)]
        middle = clock()
        for outcome in outcomes if case.inputs else ():
            torch.autograd.grad(outcome, case.inputs, weight)
        ended = clock()
        if device == "cuda":
            torch.cuda.synchronize()
        if block >= WARMUP:
            times["forward"].append((middle - started) / BLOCK / 1e3)
            times["backward"].append((ended - middle) / BLOCK / 1e3)
    modes = ("forward", "backward") if case.inputs else ("forward",)
    return [Row(case.operator, case.variant, mode, "host_time", "us", *place, times[mode], config) for mode in modes]


def measure_host(
    videos: int, classes: int, synonyms: int, width: int, device: str, config: dict[str, Any]
) -> list[Row]:
    """All cases at one size, printed too."""
    rows = []
    for case in cases(videos, classes, synonyms, width, device):
        made = host_rows(case, device, ("phrases", float(classes * synonyms)), config)
        rows += made
        text = ", ".join(f"{row.mode} {sorted(row.values)[len(row.values) // 5]:.0f}" for row in made)
        print(f"{config['name']} {case.operator} {case.variant}: {text} us of host time (p20)", flush=True)
    return rows
