"""What a run measures of itself beside its losses: FLOPs of a step, the device's ceiling, memory by part, pace.

The ceiling is a measurement, not a data sheet: the fastest product of two large square matrices on the same device, in
the precision of the run.
"""

import contextlib
import copy
import json
import resource
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from ace_dist.config import Config
from ace_dist.objectives import ConceptObjective, total_loss
from ace_dist.train.callbacks import Callback
from ace_dist.train.engine import Engine, micro_batch_size
from ace_dist.utils.console import is_verbose
from ace_dist.utils.distributed import Ranks
from ace_dist.utils.files import write_text
from ace_dist.utils.parts import Flops, PartFlops

CEILING_S = 0.5
SQUARE = {"cuda": 8192, "cpu": 1024}  # side of the matrices that measure the ceiling


class Interval(NamedTuple):
    """The steps between two logged ones: clips of all ranks, seconds, and those in which this rank waited for data."""

    clips: int
    taken_s: float
    waited_s: float


class Meters(Callback):
    """One run's meters on one rank: `line` is for a line of `metrics.jsonl`, `summary` for the end of the run.

    `flops` are those of a step, `ceiling_tflops_per_s` is of all ranks together; without it there is no MFU.
    """

    def __init__(
        self,
        ranks: Ranks,
        batch_size: int,
        flops: Mapping[str, Flops],
        ceiling_tflops_per_s: float | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.ranks, self.batch_size, self.flops, self.engine = ranks, batch_size, flops, engine
        self.ceiling_tflops_per_s = ceiling_tflops_per_s
        self.tflops_per_step = sum(sum(part) for part in flops.values()) / 1e12  # of all ranks and micro-batches
        self.memory: dict[str, int] = {}
        self.intervals: list[Interval] = []
        self.aside_s = 0.0  # since the last line: seconds spent on something that is no part of training

    @classmethod
    def build(cls, config: Config, engine: Engine, flops: Mapping[str, Flops]) -> Self:
        """The meters of a run. The ceiling is measured with `training.meters.mfu` (null: on CUDA alone). Collective."""
        ranks, mfu, ceiling = engine.ranks, config.training.meters.mfu, None
        cuda = ranks.device.type == "cuda"
        if cuda if mfu is None else mfu:
            dtype = torch.bfloat16 if engine.bf16 else torch.float32
            ceiling = sum(ranks.gather(matmul_flops_per_s(ranks.device, dtype))) / 1e12
        if cuda:
            torch.cuda.reset_peak_memory_stats(ranks.device)  # from here on it is the peak of training
        return cls(ranks, config.training.batch_size, flops, ceiling, engine)

    def on_stage(self, stage: str, step: int) -> None:
        """Between a backward pass and its step, when all parts exist: their bytes, once. No host sync."""
        if stage == "collective" and not self.memory and self.engine is not None:
            self.memory = memory_parts(self.engine)

    def line(self, clips: int, taken_s: float, waited_s: float) -> dict[str, float | None]:
        """The meters of the steps since the last line.

        `clips_per_s`, `model_tflops_per_s` and `mfu_percent` (null without a ceiling) are of all ranks together,
        `data_wait_share` and `memory_peak_gib` (of the GPU, else of the process; since the start) of this one.
        """
        self.intervals.append(Interval(clips, taken_s - self.aside_s, waited_s))
        self.aside_s = 0.0
        return self.pace(self.intervals[-1:]) | {"memory_peak_gib": peak_gib(self.ranks.device)}

    def pace(self, intervals: list[Interval]) -> dict[str, float | None]:
        taken_s = sum(part.taken_s for part in intervals)
        clips_per_s = sum(part.clips for part in intervals) / taken_s
        tflops_per_s = clips_per_s * self.tflops_per_step / self.batch_size
        ceiling = self.ceiling_tflops_per_s
        return {
            "clips_per_s": clips_per_s,
            "data_wait_share": sum(part.waited_s for part in intervals) / taken_s,
            "model_tflops_per_s": tflops_per_s,
            "mfu_percent": None if ceiling is None else 100 * tflops_per_s / ceiling,
        }

    def summary(self) -> dict[str, Any] | None:
        """Pace, FLOPs and memory of this start of the run; None when it logged no step. Collective.

        The pace leaves out the steps up to the first line, which compile and warm up, when there are others. Memory is
        that of the rank with the highest peak.
        """
        peaks = self.ranks.gather(peak_gib(self.ranks.device))
        memory = self.ranks.gather(self.memory)[peaks.index(max(peaks))]
        if not self.intervals:
            return None
        parts_gib = {name: size / 2**30 for name, size in memory.items()}
        pace = self.pace(self.intervals[1:] or self.intervals)
        pace["data_wait_share"] = fmean(self.ranks.gather(pace["data_wait_share"] or 0.0))
        return {
            "ranks": self.ranks.world,
            "device": self.ranks.device.type,
            **pace,
            "ceiling_tflops_per_s": self.ceiling_tflops_per_s,
            "model_tflops_per_step": self.tflops_per_step,
            "model_gflops_by_part": {
                name: {"forward": part.forward / 1e9, "backward": part.backward / 1e9}
                for name, part in self.flops.items()
            },
            "memory_peak_gib": max(peaks),
            "memory_gib_by_part": parts_gib | {"activations_and_rest": max(peaks) - sum(parts_gib.values())},
        }


def step_flops(config: Config, objective: ConceptObjective, world: int) -> dict[str, Flops]:
    """FLOPs of one optimizer step by part, over all ranks and micro-batches; asked before DeepSpeed shares the weights.

    With a feature cache, those of a step that finds all its clips there: the first epoch does more than is counted.
    """
    forwards = world * config.training.accumulation
    clips, frames = micro_batch_size(config, world), config.dataset.clip.frames
    one = micro_batch_flops(objective, clips, frames, config.loader.crop)
    if config.loader.feature_cache is not None:
        one = {name: flops for name, flops in one.items() if name not in ("patch embedding", "frozen blocks")}
    return {name: Flops(forwards * flops.forward, forwards * flops.backward) for name, flops in one.items()}


def micro_batch_flops(objective: ConceptObjective, clips: int, frames: int, size: int) -> dict[str, Flops]:
    """FLOPs by part of this rank's forward and backward pass on [clips,frames,3,size,size], with the phrases of step 0.

    A copy of the objective on the meta device makes them, which has shapes and no numbers. Causal attention counts in
    full, and no product that only an attention kernel's backward pass repeats.
    """
    tensors: list[Tensor] = [*objective.parameters(), *objective.buffers(), *objective.constants()]
    shared: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    shared |= {id(p): nn.Parameter(shared[id(p)], p.requires_grad) for p in objective.parameters()}
    twin = copy.deepcopy(objective, shared | {id(objective.sampler): objective.sampler}).train()
    twin.model.video.config = replace(twin.model.video.config, attention="sdpa")
    twin.model.set_step(0, 0, 0, 1)
    video = torch.empty(clips, frames, 3, size, size, device="meta")
    labels = torch.zeros(clips, dtype=torch.int64, device="meta")
    with contextlib.redirect_stdout(None), sdpa_kernel(SDPBackend.MATH), PartFlops() as counter:
        total_loss(twin(video, labels, objective.sampler.draw(0))).backward()
    return counter.flops


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, seconds: float = CEILING_S) -> float:
    """FLOP/s of the fastest of the products of two large square matrices that `seconds` have room for."""
    size = SQUARE[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b  # warms up
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < seconds:
        times.append(timed_product(a, b))
    return 2.0 * size**3 / min(times)


def timed_product(a: Tensor, b: Tensor) -> float:
    """Seconds of one product on the device."""
    if not a.is_cuda:
        started = time.perf_counter()
        a @ b
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    a @ b
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def memory_parts(engine: Engine) -> dict[str, int]:
    """Bytes on this rank's device that weights, gradients, optimizer and text features hold, by their tensors.

    A storage that two parts share counts for the first of them. Gradients exist between backward pass and step.
    """
    module, wrapper, optimizer = engine.module, engine.deepspeed.optimizer, engine.base_optimizer
    # Under ZeRO 3 this rank holds a share of each parameter, `ds_tensor`.
    held = [(p.requires_grad, getattr(p, "ds_tensor", p)) for p in module.parameters()]
    # DeepSpeed keeps gradients at the parameters without ZeRO, else in lists by parameter group.
    gradients = [[p.grad for p in engine.trained.values()], getattr(wrapper, "averaged_gradients", None)]
    # Under ZeRO 3 the optimizer's groups name the tensors that it moves only while it steps.
    masters = wrapper.fp32_partitioned_groups_flat if engine.stage == 3 else optimizer.param_groups
    parts = {
        "weights_trained": [tensor for trains, tensor in held if trains],
        "weights_frozen": [*(tensor for trains, tensor in held if not trains), *module.buffers()],
        "gradients": gradients,
        "optimizer": [masters, list(optimizer.state.values())],
        "text_feature_cache": module.text_features.frozen,
    }
    counted: set[int] = set()
    return {name: new_bytes(tree_leaves(values), counted) for name, values in parts.items()}


def new_bytes(values: Iterable[Any], counted: set[int]) -> int:
    """Bytes of the storages of tensors among `values` that are not in `counted`, to which they are added."""
    storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    fresh = {storage._cdata: storage.nbytes() for storage in storages if storage._cdata not in counted}
    counted.update(fresh)
    return sum(fresh.values())


def peak_gib(device: torch.device) -> float:
    """The most memory that this process held so far: of its GPU, or of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


def summary_table(summary: dict[str, Any]) -> str:
    """`Meters.summary` for the console: the pace, and with `verbose=true` arithmetic and memory by part."""
    pace = (
        f"pace: {summary['clips_per_s']:.1f} clips/s on {summary['ranks']} rank(s), {summary['data_wait_share']:.0%} "
        f"of the time waiting for data, {summary['memory_peak_gib']:.2f} GiB of memory a rank at its peak"
    )
    if not is_verbose():
        return pace
    mfu, ceiling = summary["mfu_percent"], summary["ceiling_tflops_per_s"]
    against = "" if mfu is None else f", {mfu:.1f} % of the {ceiling:.3g} TFLOP/s of large matrix products"
    flops = sorted(summary["model_gflops_by_part"].items(), key=lambda item: -sum(item[1].values()))
    total = 1e3 * summary["model_tflops_per_step"]
    shares = ", ".join(f"{name} {sum(part.values()) / total:.1%}" for name, part in flops)
    memory = ", ".join(f"{name.replace('_', ' ')} {gib:.3f}" for name, gib in summary["memory_gib_by_part"].items())
    return (
        f"{pace}\n"
        f"arithmetic: {summary['model_tflops_per_s']:.3g} TFLOP/s{against}; {total:.4g} GFLOP a step: {shares}\n"
        f"memory of a rank in GiB: {memory}"
    )


def write_summary(run_dir: Path, start: int, done: int, summary: dict[str, Any] | None) -> None:
    """Store the summary of steps `start` to `done` as `<run_dir>/summary.json`, and print it; nothing for None."""
    if summary is None:
        return
    summary = {"first_step": start + 1, "last_step": done, **summary}
    write_text(run_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    print(summary_table(summary), flush=True)
