"""What a run says about itself while it trains: progress, `metrics.jsonl`, trackers."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ace_dist.concepts import ConceptSampler
from ace_dist.config import TrainingConfig
from ace_dist.train.callbacks import Callback, StepEnd
from ace_dist.train.metrics import Meters
from ace_dist.train.trackers import build_trackers
from ace_dist.utils.console import Progress
from ace_dist.utils.distributed import Ranks, on_first
from ace_dist.utils.files import read_log, write_text


class Monitor(Callback):
    """Sums losses on the device and reads them every `training.log_every_steps` steps; other steps do not wait for it.

    A line of `metrics.jsonl` covers the steps since the line before: `loss`, `loss_fixed`, `loss_random` (means over
    these steps and all ranks), `unchanged_draws` (share of labels drawn for L_rand that average their root's phrases),
    `step` (steps done), `epoch`, `lr_video`, `lr_text`, what `Meters.line` measures (`clips_per_s`, `data_wait_share`,
    ...), `elapsed_s` (since the start or continuation). A run stopped between two lines keeps the open one in its
    checkpoint (`state`), so the next line covers its steps all the same. A validation has a line of its own
    (`on_result`), and its time is no part of the pace of training.
    """

    name = "log"

    def __init__(
        self,
        run_dir: Path,
        ranks: Ranks,
        start: int,
        steps: int,
        settings: TrainingConfig,
        meters: Meters,
        line: Mapping[str, Any] | None = None,
        sampler: ConceptSampler | None = None,
    ) -> None:
        self.ranks, self.every, self.batch_size = ranks, settings.log_every_steps, settings.batch_size
        self.meters = meters
        self.sampler = sampler  # of a method with random labels
        self.sums: dict[str, Tensor] = {}
        self.micro_steps = 0
        self.start_s = self.last_s = time.perf_counter()
        self.last_wait_s = 0.0
        self.last_step = start
        self.end = StepEnd(start, 0.0, {}, 0.0)
        self.steps = steps
        if line:
            self.reopen(line, settings.accumulation)
        self.trackers = on_first(ranks, build_trackers, settings.trackers, run_dir, start) or []
        if not ranks.is_first:
            return
        forget_after(run_dir / "metrics.jsonl", start, self.last_step)
        self.file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self.progress = Progress(steps, "train", "step", start)

    def close(self, error: BaseException | None) -> None:
        if self.ranks.is_first:
            self.file.close()
            for tracker in self.trackers:
                tracker.close(failed=error is not None)
            self.progress.close()

    def on_micro_batch(self, losses: Mapping[str, Tensor], loss: Tensor) -> None:
        """Add one micro-batch: its loss and the parts that it sums; no host sync."""
        for name, value in {"loss": loss, **{f"loss_{name}": part for name, part in losses.items()}}.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.micro_steps += 1

    def due(self, done: int) -> bool:
        return done % self.every == 0 or done == self.steps

    def on_step_end(self, end: StepEnd) -> None:
        """When it is time, or the run ends here, read the sums and write a line; show how far the run is."""
        self.end = end
        text = self.log(end) if self.due(end.step) or end.stop else None
        if self.ranks.is_first:
            self.progress.update(text=text)

    def log(self, end: StepEnd) -> str:
        """Write the line of the steps since the last one; returns it in short."""
        means = self.ranks.mean({name: value / self.micro_steps for name, value in self.sums.items()})
        now = time.perf_counter()
        clips = (end.step - self.last_step) * self.batch_size
        drawn = {}
        if self.sampler is not None:  # a draw is a function of the step alone, so these are the very ones
            shares = [self.sampler.draw(step).unchanged_share for step in range(self.last_step, end.step)]
            drawn = {"unchanged_draws": fmean(shares)}
        line = {
            "step": end.step,
            "epoch": round(end.epoch, 4),
            **means,
            **drawn,
            **end.rates,
            **self.meters.line(clips, now - self.last_s, end.wait_s - self.last_wait_s),
            "elapsed_s": now - self.start_s,
        }
        self.sums, self.micro_steps = {}, 0
        self.last_s, self.last_wait_s, self.last_step = now, end.wait_s, end.step
        if self.ranks.is_first:
            self.append(line)
        return f"loss {line['loss']:.3f}, {line['clips_per_s']:.1f} clips/s, data wait {line['data_wait_share']:.0%}"

    def on_result(self, step: int, values: Mapping[str, float]) -> None:
        """A line of its own for what is measured at a step and not over steps."""
        self.meters.aside_s += values["validating_s"]
        if self.ranks.is_first:
            self.append({"step": step, **values, "elapsed_s": time.perf_counter() - self.start_s})

    def state(self) -> dict[str, Any]:
        """The open line: sums by rank, and what they cover. Collective."""
        sums = self.ranks.gather({name: float(value) for name, value in self.sums.items()})
        taken_s = time.perf_counter() - self.last_s - self.meters.aside_s
        times = {"taken_s": taken_s, "wait_s": self.end.wait_s - self.last_wait_s}
        return {"steps": self.end.step - self.last_step, "micro_steps": self.micro_steps, **times, "sums": sums}

    def reopen(self, line: Mapping[str, Any], accumulation: int) -> None:
        """Continue the line that `state` gave. Exact on as many ranks as before, else every rank takes the mean."""
        sums: list[dict[str, float]] = line["sums"]
        self.last_step -= line["steps"]
        self.last_s -= line["taken_s"]
        self.last_wait_s -= line["wait_s"]
        self.micro_steps = line["steps"] * accumulation
        if len(sums) == self.ranks.world and self.micro_steps == line["micro_steps"]:
            mine = sums[self.ranks.rank]
        else:
            scale = self.micro_steps / max(1, line["micro_steps"]) / len(sums)
            mine = {name: scale * sum(part[name] for part in sums) for name in sums[0]}
        self.sums = {name: torch.tensor(value, device=self.ranks.device) for name, value in mine.items()}

    def append(self, line: Mapping[str, float | None]) -> None:
        """One line to the file, and to the trackers, which take no nulls."""
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        step = line["step"]
        assert isinstance(step, int)
        values = {name: value for name, value in line.items() if name != "step" and value is not None}
        for tracker in self.trackers:
            tracker.log(step, values)


def forget_after(path: Path, step: int, logged: int) -> None:
    """Drop the lines after `step`, which a continued run writes again, and what a kill or a disk has damaged.

    Damaged lines are kept in `metrics.damaged.jsonl`. `logged`: the last step of which there was a line when the
    checkpoint was written. What is not there any more is said.
    """
    rows, damaged = read_log(path)
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    if lines and len(lines) in damaged and not lines[-1].endswith(b"\n") and max_step(rows) >= logged:
        damaged.remove(len(lines))  # written when a kill came, after the checkpoint
    if damaged:
        with path.with_name("metrics.damaged.jsonl").open("ab") as file:
            file.writelines(lines[number - 1].rstrip(b"\r\n") + b"\n" for number in damaged)
        numbers = ", ".join(map(str, damaged))
        print(f"{path}: line {numbers} cannot be read: moved to metrics.damaged.jsonl, without numbers", flush=True)
    if max_step(rows) < logged:
        print(
            f"{path} was cut: it ends with step {max_step(rows)}, the checkpoint was written after step {step}; the "
            f"numbers between are lost, the training itself goes on as it would have",
            flush=True,
        )
    kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= step]
    if "".join(kept).encode() != b"".join(lines):
        write_text(path, "".join(kept))


def max_step(rows: Sequence[Mapping[str, Any]]) -> int:
    return max((row["step"] for row in rows), default=0)
