"""The profile of chosen steps (`profile=true`): time by part, a trace for Perfetto, a memory snapshot.

Nothing is recorded or waited for on other steps.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch._C._autograd import DeviceType

from ace_dist.config import Config
from ace_dist.train.callbacks import Callback
from ace_dist.train.metrics import Meters
from ace_dist.utils.distributed import Ranks
from ace_dist.utils.files import write_text
from ace_dist.utils.parts import OTHER, PREFIX, part

STAGES = {"collective": "flags", "step": "optimizer"}  # parts that have another name than the loop's stage
COLLECTIVES = (
    "all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor",
    "all_gather_coalesced", "reduce_scatter_coalesced",
)  # fmt: skip
STEP = "ProfilerStep"  # how torch's profiler names the range of a step
STEPS = 3  # recorded with `profile=true` alone
SNAPSHOT_EVENTS = 100_000  # allocations and releases that a memory snapshot keeps, the newest


def build_recorder(device: torch.device, steps: int, warmup: int = 0, details: bool = True) -> torch.profiler.profile:
    """Torch's profiler for some steps, of which `warmup` ones come before; `details`: shapes and allocations too."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # without a GPU it prints as an error that there is none
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    plan = torch.profiler.schedule(wait=0, warmup=warmup, active=steps, repeat=1)
    return torch.profiler.profile(
        activities=activities, schedule=plan, record_shapes=details, profile_memory=details, acc_events=True
    )


def seconds_by_part(events: Iterable[Any]) -> dict[str, list[float]]:
    """Seconds of each part in each recorded step, from the events of torch's profiler.

    Every moment belongs to the innermost part that is open, `other` where none is, so parts add up to the step. On a
    GPU a part has the time of the kernels that were launched within it, however late they run, and `other` the rest.
    """
    events = list(events)
    on_gpu = any(event.kernels for event in events)
    moments: list[tuple[float, float, str, float]] = []  # start, minus the end, part (empty: a launch), seconds
    for event in events:
        start, end = event.time_range.start, event.time_range.end
        if event.device_type == DeviceType.CPU and event.name.startswith((PREFIX, STEP)):
            name = OTHER if event.name.startswith(STEP) else event.name.removeprefix(PREFIX)
            moments.append((start, -end, name, (end - start) / 1e6))
        elif event.kernels:
            moments.append((start, -start, "", sum(kernel.duration for kernel in event.kernels) / 1e6))
    steps: list[dict[str, float]] = []
    open_parts: list[tuple[float, str]] = []  # end and name, the innermost last
    for start, minus_end, name, taken in sorted(moments):
        while open_parts and open_parts[-1][0] <= start:
            open_parts.pop()
        if not open_parts and name != OTHER:
            continue  # outside of the recorded steps
        if not open_parts:
            steps.append({OTHER: taken})
        elif name and on_gpu:
            steps[-1].setdefault(name, 0.0)
        elif name or on_gpu:
            outer, own = (open_parts[-1][1], name) if name else (OTHER, open_parts[-1][1])
            steps[-1][outer] -= taken
            steps[-1][own] = steps[-1].get(own, 0.0) + taken
        if name:
            open_parts.append((-minus_end, name))
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: [max(0.0, step.get(name, 0.0)) for step in steps] for name in names}


@contextmanager
def communication_named() -> Iterator[None]:
    """Within it the collectives that DeepSpeed calls are the part `communication`."""
    from deepspeed.comm import comm

    names = [name for name in COLLECTIVES if hasattr(comm.cdb, name)]
    for name in names:
        setattr(comm.cdb, name, part("communication")(getattr(comm.cdb, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(comm.cdb, name)  # what is left is the class's own


class Profiler(Callback):
    """Records the steps that `training.profile` chooses, three of them for `profile=true` alone; else does nothing.

    Writes into `<run>/profile`: `trace-rankN.json.gz` (a Chrome trace; ui.perfetto.dev opens it), `parts-rankN.json`
    (milliseconds of each part in each step) and, on CUDA, `memory-rankN.pickle` (for pytorch.org/memory_viz).
    """

    def __init__(self, config: Config, run_dir: Path, ranks: Ranks, meters: Meters) -> None:
        self.settings, self.folder = config.training.profile, run_dir / "profile"
        self.ranks, self.meters = ranks, meters
        self.steps = self.settings.steps or (STEPS if config.profile else 0)
        self.steps_begun = 0
        self.recorder: torch.profiler.profile | None = None
        self.recording = ExitStack()
        self.stage = ExitStack()

    def on_step_begin(self, step: int) -> None:
        """Start or end the recording when it is time to. It starts a step early: its own start takes time."""
        self.steps_begun += 1
        first = self.settings.after + 1
        if not self.steps or self.steps_begun > first + self.steps:
            return
        self.stage.close()
        if self.steps_begun == first + self.steps:
            self.finish()
            return
        if self.recorder is not None:
            self.recorder.step()
        elif self.steps_begun == max(1, first - 1):
            warmup = min(1, self.settings.after)
            self.recorder = build_recorder(self.ranks.device, self.steps, warmup, self.settings.trace)
            self.recorder.start()
        if self.steps_begun == first:
            self.recording.enter_context(communication_named())
            if self.settings.memory_snapshot and self.ranks.device.type == "cuda":
                torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_EVENTS)

    def on_stage(self, stage: str, step: int) -> None:
        self.stage.close()
        if self.recorder is not None:
            self.stage.enter_context(part(STAGES.get(stage, stage)))

    def finish(self) -> None:
        """Stop recording and write what was recorded; the time of that is left out of the run's pace."""
        started = time.perf_counter()
        recorder, self.recorder = self.recorder, None
        assert recorder is not None
        self.stage.close()
        self.recording.close()
        recorder.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        rank, snapshot = self.ranks.rank, self.settings.memory_snapshot
        if self.settings.trace:
            path = self.folder / f"trace-rank{rank}.json.gz"
            with tempfile.TemporaryDirectory(dir=self.folder) as temporary:  # under its name only when whole
                recorder.export_chrome_trace(f"{temporary}/{path.name}")
                os.replace(f"{temporary}/{path.name}", path)
        if snapshot and self.ranks.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(self.folder / f"memory-rank{rank}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        seconds = seconds_by_part(recorder.events() or ())
        milliseconds = {name: [1e3 * value for value in values] for name, values in seconds.items()}
        write_text(self.folder / f"parts-rank{rank}.json", json.dumps(milliseconds, indent=1) + "\n")
        if self.ranks.is_first:
            world = self.ranks.world
            flops = {name: (each.forward // world, each.backward // world) for name, each in self.meters.flops.items()}
            print(f"\n{parts_table(seconds, flops)}\nprofile: {self.folder}", flush=True)
            if snapshot and self.ranks.device.type != "cuda":
                print("profile: no memory snapshot, as torch records the allocations of CUDA devices alone", flush=True)
        self.meters.aside_s += time.perf_counter() - started

    def close(self, error: BaseException | None) -> None:
        """Finish a recording that the end of the run cut short; after an error, only stop it."""
        if error is None and self.recorder is not None and self.steps_begun > self.settings.after:
            self.finish()
        self.stage.close()
        self.recording.close()
        if self.recorder is not None:
            self.recorder.stop()
        if error is None and self.steps and self.steps_begun <= self.settings.after and self.ranks.is_first:
            print(
                f"profile: nothing recorded, as the run took {self.steps_begun} steps and training.profile.after="
                f"{self.settings.after} go before the first recorded one",
                flush=True,
            )


def parts_table(seconds: Mapping[str, list[float]], flops: Mapping[str, tuple[int, int]]) -> str:
    """Median milliseconds of each part of a step, its share, and the rate of its matrix products.

    `flops`: forward and backward FLOPs of a step on this rank, by part; the backward pass counts as one part.
    """
    products = {name: forward for name, (forward, _) in flops.items()}
    products["backward"] = sum(backward for _, backward in flops.values())
    count = max(len(values) for values in seconds.values())
    whole = median(sum(values[step] for values in seconds.values()) for step in range(count))
    lines = [f"{'part of a step':18}{'ms':>10}{'share':>8}{'TFLOP/s':>10}"]
    for name, values in sorted(seconds.items(), key=lambda item: -median(item[1])):
        taken = median(values)
        rate = f"{products[name] / taken / 1e12:.4f}" if products.get(name) and taken else ""
        lines.append(f"{name:18}{1e3 * taken:10.2f}{taken / whole:8.1%}{rate:>10}".rstrip())
    lines.append(f"{'whole':18}{1e3 * whole:10.2f}   median of {count} step(s)")
    return "\n".join(lines)
