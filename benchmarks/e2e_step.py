"""How many clips a second does the launcher itself train, decoding included, and how long does it wait for data?

    python benchmarks/e2e_step.py                                    # the demo, a few steps
    python benchmarks/e2e_step.py --shapes paper_30 paper_15         # the paper's networks and clips, on a GPU
    python benchmarks/e2e_step.py --shapes paper_30 --variant uint8 --settings loader.dtype=uint8

Starts `deepspeed --num_gpus 1 launchers/train.py` as a user does, with random weights, on shards that are built once in
`--work` (the demo's world; panned photographs of the paper's sizes, in the codec of `--codec`) or given with
`--shards`. The numbers are those of the run's `metrics.jsonl`, without its first line, which has compiling and warming
up; what the launcher printed, and when, is in the run's `launcher.log`. `--settings` are any of the run's; `--variant`
is how the rows call them. Metrics: `clips_per_s`, `data_wait_share` (of the time), `mfu_percent`, `memory_peak_gib`,
and `start` (s from the command to the first line of metrics).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_loading import GOP, SHOWN_FPS
from common import Row, append
from loading_world import Case, build

from ace_dist.cli import execute

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
UNITS = {"clips_per_s": "clips/s", "data_wait_share": "share", "mfu_percent": "%", "memory_peak_gib": "GiB"}


@dataclass(frozen=True)
class Shape:
    """A run: its experiment, and the settings that make it short."""

    name: str
    experiment: str
    dataset: str | None = None  # of `loading_world`; None: the demo's own world
    every: int = 5  # steps to a line of metrics


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("demo", "demo", every=2),
        Shape("paper_30", "ata_ace", "ata"),
        Shape("paper_25", "ikea_ace", "ikea"),
        Shape("paper_15", "gtea_ace", "gtea"),
    )
}


def shards(shape: Shape, codec: str, clips: int, work: Path) -> Path:
    """The folder of a shape's shards, built when it is not there."""
    if shape.dataset is not None:
        case = Case(shape.dataset, codec, gop=GOP[codec], fps=SHOWN_FPS[shape.dataset])
        return build(case, work, clips, workers=0).folder
    folder = work / "demo"
    world = [f"dataset.world.train_clips={clips}", "dataset.world.test_clips=18"]
    execute(["build_shards", "experiment=demo", f"dataset.shards={folder}", *world])
    return folder


def run(command: list[str], log: Path, limit_s: float | None) -> int:
    """Exit status of a command of this checkout, with the seconds before each line that it prints in `log`.

    After `limit_s` it is told to end; DeepSpeed's launcher ends the ranks then.
    """
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    end = threading.Timer(limit_s or threading.TIMEOUT_MAX, process.terminate)
    end.start()
    with log.open("w") as out:
        for line in process.stdout or ():
            out.write(f"{time.monotonic() - started:.1f} {line}")
            out.flush()
    end.cancel()
    return process.wait()


def train(shape: Shape, folder: Path, run_dir: Path, options: argparse.Namespace) -> tuple[list[Any], str, float]:
    """Train in a new run folder; returns its lines of metrics, its loader, and the seconds until the first line.

    Raises `SystemExit` with the end of the log when there are none.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    log, metrics = run_dir / "launcher.log", run_dir / "metrics.jsonl"
    untrained = [] if shape.dataset is None else ["model.init=random", "dataset.test_groups=null", "dataset.novel=null"]
    short = [f"training.max_steps={options.steps}", f"training.log_every_steps={shape.every}", "training.trackers=[]"]
    place = [f"dataset.shards={folder}", f"run={run_dir}", f"training.device={options.device}"]
    started = time.time()
    status = run(
        [
            *(sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "1"),
            *("launchers/train.py", f"experiment={shape.experiment}", *place, *short, *untrained, *options.settings),
        ],
        log,
        options.limit,
    )
    said = [line for line in log.read_text().splitlines() if "] [INFO] [" not in line]
    if not metrics.is_file():
        raise SystemExit("\n".join([f"{shape.name}: no line of metrics, launcher ended with {status}:", *said[-12:]]))
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    begun = (run_dir / "environment.json").stat().st_mtime
    loader = next((line.split(" ", 1)[1] for line in said if " loader: " in line), "")
    return lines, loader, begun - started + lines[0]["elapsed_s"]


def measure(shape: Shape, options: argparse.Namespace) -> list[Row]:
    """Rows of one shape; prints them too."""
    folder = options.shards or shards(shape, options.codec, options.clips, options.work)
    run_dir = options.work / f"run_{shape.name}_{options.variant}"
    lines, loader, start_s = train(shape, folder.resolve(), run_dir.resolve(), options)
    lines = lines[1:] or lines
    config = {"experiment": shape.experiment, "settings": options.settings, "steps": options.steps}
    config |= {"loader": loader, "codec": options.codec if shape.dataset else None}

    def row(metric: str, unit: str, values: list[float]) -> Row:
        frames = float(shape.name.removeprefix("paper_")) if shape.dataset else 8.0
        return Row("e2e_step", options.variant, shape.name, metric, unit, "frames", frames, values, config)

    measured = {name: [line[name] for line in lines if line.get(name) is not None] for name in UNITS}
    rows = [row(name, UNITS[name], values) for name, values in measured.items() if values]
    rows.append(row("start", "s", [start_s]))
    figures = ", ".join(f"{each.metric} {sorted(each.values)[len(each.values) // 2]:.4g}" for each in rows)
    print(f"{shape.name} {options.variant}: {figures}; {loader}", flush=True)
    return rows


def main() -> None:
    """Measure and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=["demo"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--codec", choices=("mjpeg", "h264", "vp9"), default="mjpeg", help="of the paper's shapes")
    parser.add_argument("--clips", type=int, default=96, help="to build shards of; a training run repeats them")
    parser.add_argument("--shards", type=Path, help="a folder of shards to train on, of the one shape asked for")
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE", help="more settings of the run")
    parser.add_argument("--variant", default="default", help="name of these settings in the rows")
    parser.add_argument("--limit", type=float, help="seconds for a shape; what was logged until then counts")
    parser.add_argument("--work", type=Path, default=Path("runs/e2e_step"), help="folder of shards and runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "e2e_step.csv")
    options = parser.parse_args()
    if options.shards and len(options.shapes) > 1:
        parser.error("--shards goes with one of --shapes")
    for name in options.shapes:
        append(options.output, measure(SHAPES[name], options), options.device)


if __name__ == "__main__":
    main()
