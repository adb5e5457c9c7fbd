"""Everything worth knowing of a GPU machine, by one command and within its time: tests, speed, loading, a whole run.

    python benchmarks/gpu_suite.py                          # 8 minutes; from a source tree, installed or not
    python benchmarks/gpu_suite.py --budget 180 --quick     # fewer shapes and turns
    python benchmarks/gpu_suite.py --only step e2e          # these again; the table keeps what the others found before
    python benchmarks/gpu_suite.py --device cpu --quick     # the same paths at toy size, for CI

Sections run one after the other, the most valuable first. Each is a process group with a time limit, its part of what
is left of `--budget`, and with its own log and rows (`common.py` names their columns) in `--output`; one that fails or
takes too long costs itself only, and what it had written is shown. What a section leaves of its time, the others get.
Ends with a table of at most 60 lines, and status 1 when a section did not finish.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
TABLE_LINES = 60
ROW_LINES = 11  # of a section in the table
STEP = {
    "cuda": [  # torch.compile takes half a minute on a new machine: what does without goes first
        *("ours_bf16_graphs", "ours_bf16", "naive_bf16", "ours_bf16_graphs_fp8", "ours_bf16_graphs_uint8"),
        "ours_bf16_auto",
    ],
    "cpu": ["ours", "ours_bf16_uint8"],
}


@dataclass(frozen=True)
class Section:
    """Commands that share a time limit; `share` is their part of the budget, `metrics` the figures of the table."""

    share: int
    commands: tuple[tuple[str, ...], ...]
    metrics: tuple[str, ...] = ()
    competitors: bool = False  # whether variants stand side by side in a line of the table


def sections(device: str, quick: bool) -> dict[str, Section]:
    """The sections by name, in order. `OUTPUT` in a command is the section's rows, `WORK` a folder for its files."""
    toy = device == "cpu"
    single = ("--threads", "1") if toy else ()
    few = ("--quick",) if quick else ()
    attended = (*single, "--shapes", "demo_temporal", "--dtypes", "float32") if toy else few
    workers = str(min(12, os.cpu_count() or 1))
    tests = (
        ("-m", "not gpu", "tests/concepts/test_novel_rule.py")
        if toy
        else ("-m", "gpu", "-n", workers, "--dist", "worksteal")
    )
    shapes = ("toy",) if toy else ("paper_30",) if quick else ("paper_30", "paper_15")
    runs = (
        ("--shapes", "demo", "--steps", "4", "--clips", "32")
        if toy
        else ("--shapes", *shapes, "--steps", "30" if quick else "60")
    )
    clips = ("gtea_mjpeg_256_gop1",) if toy else ("ata_mjpeg_256_gop1_10fps", "ata_h264_256_gop8_10fps")

    def script(name: str, *words: str) -> tuple[str, ...]:
        return (f"benchmarks/{name}.py", "--device", device, *words, "--output", "OUTPUT")

    step_turns, loading_turns = ("1", "1") if toy else ("3", "2") if quick else ("8", "4")
    pytest = ("-m", "pytest", "-q", "-rfE", "--continue-on-collection-errors", *tests)
    step = script("bench_step", "--shapes", *shapes, "--variants", *STEP[device], "--turns", step_turns)
    loading = script("bench_loading", "--cases", *clips, "--turns", loading_turns, "--work", "WORK")
    step_metrics = ("step_time", "host_time", "clips_per_s", "ceiling_share", "peak_memory_gib", "first_step")
    run_metrics = ("clips_per_s", "data_wait_share", "mfu_percent", "memory_peak_gib", "start")
    times = ("graph_time", "host_time", "time")
    return {
        "tests": Section(75, (pytest,)),
        "step": Section(130, (step,), step_metrics),
        "e2e": Section(100, (script("e2e_step", *runs, "--work", "WORK"),), run_metrics),
        "loading": Section(70, (loading,), ("clips_per_s", "clips_per_core_s")),
        "operators": Section(60, (script("bench_similarity", *few, *single),), times, True),
        "attention": Section(45, (script("bench_attention", *attended),), times, True),
        "trunk": Section(30, (script("bench_trunk", *few, *single),), times, True),
    }


def run_section(name: str, section: Section, folder: Path, limit_s: float) -> dict[str, Any]:
    """Run a section's commands in order; returns how it ended and how long it took."""
    rows, log = folder / f"{name}.csv", folder / f"{name}.log"
    rows.unlink(missing_ok=True)
    places = {"OUTPUT": str(rows), "WORK": str(folder / "work" / name)}
    started, status = time.monotonic(), "finished"
    with log.open("w") as out:
        for command in section.commands:
            words = [sys.executable, *(places.get(word, word) for word in command)]
            left_s = limit_s - (time.monotonic() - started)
            code = run_within(words, left_s, out)
            if code is None:
                status = f"cut off after {limit_s:.0f} s"
                break
            if code:
                status = f"failed with {code}"
    if status == "finished" and section.metrics and not rows.is_file():
        status = "finished without rows"
    return {"status": status, "seconds": round(time.monotonic() - started, 1), "limit_s": round(limit_s, 1)}


def run_within(command: list[str], limit_s: float, out: Any) -> int | None:
    """Exit status of a command, None when it took longer and was ended with all that it had started."""
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(max(limit_s, 0.1))
    except subprocess.TimeoutExpired:
        return None
    finally:  # also what a command left running, and on Ctrl-C
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def table(states: Mapping[str, dict[str, Any]], known: Mapping[str, Section], folder: Path, device: str) -> list[str]:
    """What every section that ever ran into this folder found."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    lines = [f"{name}, torch {torch.__version__}, rows and logs in {folder}"]
    for section, state in states.items():
        lines.append(f"{section}: {state['status']}, {state['seconds']:.0f} of {state['limit_s']:.0f} s")
        rows, log = folder / f"{section}.csv", folder / f"{section}.log"
        found = rows_table(rows, known[section]) if known[section].metrics else test_lines(log)
        if state["status"] != "finished":
            found = [*found, *log_end(log)]
        lines += [f"  {line}"[:200] for line in found]
    if len(lines) > TABLE_LINES:
        lines[TABLE_LINES - 1 :] = [f"... {len(lines) - TABLE_LINES + 1} lines more: {folder}"]
    return lines


def rows_table(path: Path, section: Section) -> list[str]:
    """The medians of a section's metrics: a line for each variant of each mode, or a line for all competitors."""
    values, units = read_medians(path, section.metrics)
    if section.competitors:
        modes = {(place, metric): dict[str, str]() for metric in units for place, _ in values}
        for (place, variant), cells in values.items():
            for metric, value in cells.items():
                modes[place, metric][variant] = value
        lines = [
            f"{place} {metric} [{units[metric]}]: {', '.join(f'{name} {value}' for name, value in each.items())}"
            for (place, metric), each in modes.items()
        ]
    else:
        header = ["", "", *(f"{metric} [{unit}]" for metric, unit in units.items())]
        body = [[*key, *(cells.get(metric, "-") for metric in units)] for key, cells in values.items()]
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
        padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in [header, *body]]
        lines = ["  ".join(line).rstrip() for line in padded]
    hidden = len(lines) - ROW_LINES
    return [*lines[:ROW_LINES], *([f"... {hidden} lines more in {path.name}"] if hidden > 0 else [])]


def read_medians(path: Path, metrics: tuple[str, ...]) -> tuple[dict[tuple[str, str], dict[str, str]], dict[str, str]]:
    """Medians of a file of rows by what was measured and by variant, and the units of the metrics that it has."""
    values: dict[tuple[str, str], dict[str, str]] = {}
    units: dict[str, str] = {}
    with path.open(newline="") if path.is_file() else contextlib.nullcontext([]) as file:
        for row in csv.DictReader(file):
            about = json.loads(row["config_json"])
            place = [about[key] for key in ("name", "layout", "dtype") if about.get(key, row["mode"]) != row["mode"]]
            name = " ".join([*([row["name"]] if place else []), *place, row["mode"]])
            if row["metric"] in metrics:
                values.setdefault((name, row["variant"]), {})[row["metric"]] = f"{float(row['p50']):.4g}"
                units[row["metric"]] = row["unit"]
    return values, {metric: units[metric] for metric in metrics if metric in units}


def test_lines(log: Path) -> list[str]:
    """pytest's count and the first failures."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    count = [line.strip("= ") for line in lines if re.search(r"\d+ (passed|failed|error|skipped).* in ", line)]
    return [*count[-1:], *failed[:5], *([f"... {len(failed) - 5} failures more"] if len(failed) > 5 else [])]


def log_end(log: Path) -> list[str]:
    """The last lines of a log, without those of progress."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return [f"| {line}" for line in lines[-3:]]


def main() -> int:
    """Run the sections, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", metavar="SECTION", help="in their usual order; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and turns")
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS", help="of all sections together")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu_suite", help="folder of rows and logs")
    options = parser.parse_args()
    known = sections(options.device, options.quick)
    chosen = [name for name in known if options.only is None or name in options.only]
    if unknown := set(options.only or ()) - known.keys():
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    folder, started = options.output.resolve(), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "suite.json"
    states = json.loads(note.read_text()) if note.is_file() else {}
    for place, name in enumerate(chosen):
        left_s = options.budget - (time.monotonic() - started)
        limit_s = left_s * known[name].share / sum(known[other].share for other in chosen[place:])
        print(f"{name}: up to {limit_s:.0f} s", flush=True)
        states[name] = run_section(name, known[name], folder, limit_s)
        note.write_text(json.dumps(states, indent=1) + "\n")
    print(*table({name: states[name] for name in known if name in states}, known, folder, options.device), sep="\n")
    return int(any(states[name]["status"] != "finished" for name in chosen))


if __name__ == "__main__":
    raise SystemExit(main())
