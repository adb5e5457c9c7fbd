"""Owns the profile of chosen steps: time by part, a trace for Perfetto, a memory snapshot.

Nothing is wrapped, recorded or waited for on other steps; on a GPU the recorded ones are timed by events on the
stream, and the host waits for them once, after the last.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from ace_dist.objectives import concept as objectives
from ace_dist.train.callbacks import Callback
from ace_dist.utils.files import write_text

if TYPE_CHECKING:
    from ace_dist.config import ProfileConfig
    from ace_dist.objectives import ConceptObjective
    from ace_dist.train.metrics import Meters
    from ace_dist.utils.distributed import Ranks


# What the loop calls its stages (`Callback.on_stage`), where a profile says it otherwise.
STAGES = {"collective": "flags", "step": "optimizer"}
COLLECTIVES = (
    "all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor",
    "all_gather_coalesced", "reduce_scatter_coalesced",
)  # fmt: skip
OTHER = "other"
SNAPSHOT_EVENTS = 100_000  # allocations and releases that a memory snapshot keeps, the newest


class Parts:
    """Times the parts of steps. Every moment belongs to the innermost part that is open, so parts add up to the step.

    On a GPU the clock is that of the stream: what a part queued is its own, however late it runs. Parts carry their
    names into a torch trace too, as `part: NAME`.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self.open: list[tuple[str, Any]] = []
        self.marks: list[tuple[int, str, Any]] = []  # step, the part that ends or is interrupted, and when
        self.step = -1
        self.held_gib: dict[str, float] = {}

    def begin_step(self) -> None:
        """A step starts here, and the one before ends."""
        self.close()
        self.step += 1

    def close(self) -> None:
        """End whatever is open."""
        while self.open:
            self.leave()
        self.mark()

    def stage(self, name: str) -> None:
        """A stage of the loop starts, and with that the one before ends."""
        while self.open:
            self.leave()
        self.enter(name)

    def enter(self, name: str) -> None:
        """Open a part inside the one that is open."""
        self.mark()
        label = torch.profiler.record_function(f"part: {name}")
        label.__enter__()
        self.open.append((name, label))

    def leave(self) -> None:
        """Close the part that was opened last."""
        self.mark()
        name, label = self.open.pop()
        label.__exit__(None, None, None)
        if self.stream is not None:
            held = torch.cuda.memory_allocated(self.stream.device) / 2**30
            self.held_gib[name] = max(self.held_gib.get(name, 0.0), held)

    def mark(self) -> None:
        """The time since the mark before belongs to what is open now."""
        moment: Any = time.perf_counter()
        if self.stream is not None:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record(self.stream)
        self.marks.append((self.step, self.open[-1][0] if self.open else OTHER, moment))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block of code."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def seconds(self) -> dict[str, list[float]]:
        """Seconds of each part in each recorded step. On a GPU this waits for the last of them."""
        found: dict[str, list[float]] = {}
        if self.stream is not None and self.marks:
            self.marks[-1][2].synchronize()
        for (_, _, before), (step, part, now) in pairwise(self.marks):
            taken = now - before if self.stream is None else before.elapsed_time(now) / 1e3
            found.setdefault(part, [0.0] * (self.step + 1))[step] += taken
        return found

    @contextmanager
    def watching(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """Within it, calls of the function `name` of an object or module are a part."""
        plain: Callable[..., Any] = getattr(owner, name)
        own = name in vars(owner)

        def timed(*args: Any, **kwargs: Any) -> Any:
            """The plain function, inside the part."""
            with self.part(part):
                return plain(*args, **kwargs)

        setattr(owner, name, timed)
        try:
            yield
        finally:
            if own:
                setattr(owner, name, plain)
            else:
                delattr(owner, name)


@contextmanager
def watch_forward(module: ConceptObjective, parts: Parts) -> Iterator[None]:
    """Within it the parts of an objective's forward pass are told apart, with the names of `models.flops`."""
    video: Any = module.model.video
    with ExitStack() as watched:
        watched.enter_context(parts.watching(video.patch_embed, "forward", "patch embedding"))
        for index, block in enumerate(video.blocks):
            part = "trained blocks" if index >= video.first_trained else "frozen blocks"
            for name in ("forward", "last"):
                if hasattr(block, name):
                    watched.enter_context(parts.watching(block, name, part))
        if getattr(video, "temporal", None) is not None:
            watched.enter_context(parts.watching(video.temporal, "forward", "trained blocks"))
        watched.enter_context(parts.watching(video.head, "forward", "head"))
        watched.enter_context(parts.watching(module, "encode", "text"))
        watched.enter_context(parts.watching(objectives, "concept_cross_entropy_sets", "loss"))
        watched.enter_context(parts.watching(module.model.similarity, "forward", "loss"))
        yield


@contextmanager
def watch_communication(parts: Parts) -> Iterator[None]:
    """Within it the collectives that DeepSpeed calls are told apart; on a GPU it may overlap them with what follows."""
    from deepspeed.comm import comm

    with ExitStack() as watched:
        for name in COLLECTIVES:
            if hasattr(comm.cdb, name):
                watched.enter_context(parts.watching(comm.cdb, name, "communication"))
        yield


def trace_recorder(
    device: torch.device, plan: Callable[[int], torch.profiler.ProfilerAction] | None = None
) -> torch.profiler.profile:
    """Torch's profiler for a device, with shapes and allocations; it is started by its owner."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # without a GPU it prints as an error that there is none
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, schedule=plan, record_shapes=True, profile_memory=True)


class Profiler(Callback):
    """Records the steps that `training.profile` chooses; with `steps: 0`, the default, it does nothing.

    Writes into `<run_dir>/profile`: `trace-rankN.json.gz` (a Chrome trace; ui.perfetto.dev opens it),
    `parts-rankN.json` (milliseconds of each part in each step) and, on CUDA, `memory-rankN.pickle` (for
    pytorch.org/memory_viz).
    """

    def __init__(
        self,
        settings: ProfileConfig,
        run_dir: Path,
        ranks: Ranks,
        objective: ConceptObjective,
        meters: Meters,
    ) -> None:
        self.settings, self.folder, self.ranks = settings, run_dir / "profile", ranks
        self.objective, self.meters = objective, meters
        self.seen = 0  # steps begun
        self.recording = ExitStack()
        self.parts: Parts | None = None
        self.trace: torch.profiler.profile | None = None

    def on_stage(self, stage: str, step: int) -> None:
        if self.parts is not None:
            self.parts.stage(STAGES.get(stage, stage))

    def on_step_begin(self, step: int) -> None:
        """A step begins; the recording starts or ends here when it is time to."""
        self.seen += 1
        first = self.settings.after + 1
        if not self.settings.steps or self.seen > first + self.settings.steps:
            return
        if self.seen == first + self.settings.steps:
            self.finish()
        else:
            if self.seen == max(1, first - 1):
                self.warm_up()
            elif self.trace is not None:
                self.trace.step()
            if self.seen == first:
                self.start()
            if self.parts is not None:
                self.parts.begin_step()

    def warm_up(self) -> None:
        """Torch's profiler starts one step early, because its own start takes time in the step."""
        if not self.settings.trace:
            return
        plan = torch.profiler.schedule(wait=0, warmup=min(1, self.settings.after), active=self.settings.steps, repeat=1)
        self.trace = trace_recorder(self.ranks.device, plan)
        self.trace.start()

    def start(self) -> None:
        """Tell the parts apart from here on, and record allocations."""
        if self.settings.memory_snapshot and self.ranks.device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_EVENTS)
        parts = self.parts = Parts(self.ranks.device)
        self.recording.enter_context(watch_forward(self.objective, parts))
        self.recording.enter_context(watch_communication(parts))

    def finish(self) -> None:
        """Stop recording and write what was recorded; the time of that is left out of the run's pace."""
        started = time.perf_counter()
        parts, self.parts = self.parts, None
        assert parts is not None
        parts.close()
        self.recording.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        rank = self.ranks.rank
        if self.trace is not None:
            self.trace.stop()
            self.trace.export_chrome_trace(str(self.folder / f"trace-rank{rank}.json.gz"))
            self.trace = None
        cuda = self.ranks.device.type == "cuda"
        if self.settings.memory_snapshot and cuda:
            torch.cuda.memory._dump_snapshot(str(self.folder / f"memory-rank{rank}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        seconds = parts.seconds()
        milliseconds = {name: [1e3 * value for value in values] for name, values in seconds.items()}
        write_text(self.folder / f"parts-rank{rank}.json", json.dumps(milliseconds, indent=1) + "\n")
        if self.ranks.is_first:
            flops = {
                name: (part.forward // self.ranks.world, part.backward // self.ranks.world)
                for name, part in self.meters.flops.items()
            }
            print(f"\n{parts_table(seconds, flops, parts.held_gib)}\nprofile: {self.folder}", flush=True)
            if self.settings.memory_snapshot and not cuda:
                print("profile: no memory snapshot, as torch records the allocations of CUDA devices alone", flush=True)
        self.meters.aside_s += time.perf_counter() - started

    def close(self, error: BaseException | None) -> None:
        """Finish a recording that the end of the run cut short; after an error, only stop it."""
        if error is None and self.parts is not None:
            self.finish()
        self.recording.close()
        if self.trace is not None:
            self.trace.stop()
        if error is None and self.settings.steps and self.seen <= self.settings.after and self.ranks.is_first:
            print(
                f"profile: nothing recorded, as the run took {self.seen} steps and training.profile.after="
                f"{self.settings.after} go before the first recorded one",
                flush=True,
            )


def parts_table(
    seconds: Mapping[str, list[float]], flops: Mapping[str, tuple[int, int]], held_gib: Mapping[str, float]
) -> str:
    """Median milliseconds of each part of a step, its share, the rate of its matrix products, GiB held at its end.

    `flops`: forward and backward FLOPs of a step on this rank, by part; the backward pass counts as one part.
    """
    products = {name: forward for name, (forward, _) in flops.items()}
    products["backward"] = sum(backward for _, backward in flops.values())
    count = max(len(values) for values in seconds.values())
    whole = median(sum(values[step] for values in seconds.values()) for step in range(count))
    memory = f"{'GiB held':>10}" if held_gib else ""
    lines = [f"{'part of a step':18}{'ms':>10}{'share':>8}{'TFLOP/s':>10}{memory}"]
    for name, values in sorted(seconds.items(), key=lambda item: -median(item[1])):
        taken = median(values)
        rate = f"{products[name] / taken / 1e12:.4f}" if products.get(name) and taken else ""
        held = f"{held_gib[name]:10.2f}" if name in held_gib else ""
        lines.append(f"{name:18}{1e3 * taken:10.2f}{taken / whole:8.1%}{rate:>10}{held}".rstrip())
    lines.append(f"{'whole':18}{1e3 * whole:10.2f}   median of {count} step(s)")
    return "\n".join(lines)
