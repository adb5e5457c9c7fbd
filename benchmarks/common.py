"""What every benchmark shares: the rows of its CSV, the description of the machine, timing, GPU extras.

Schema: name, variant, mode, metric, unit, x_name, x_value, p20, p50, p80, n, config_json, device, driver, torch,
triton, commit, utc. Competitors of a row are timed in turns in the same process, so that ratios hold on a busy machine.
"""

from __future__ import annotations

import csv
import json
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Machine:
    """Where a row was measured."""

    device: str
    driver: str
    torch: str
    triton: str
    commit: str


@dataclass(frozen=True)
class Row:
    """One measured quantity as quantiles of `n` repetitions, in `unit`."""

    name: str
    variant: str
    mode: str
    metric: str
    unit: str
    x_name: str
    x_value: float
    values: Sequence[float]
    config: dict[str, Any] = field(default_factory=dict)


COLUMNS = (
    *("name", "variant", "mode", "metric", "unit", "x_name", "x_value", "p20", "p50", "p80", "n", "config_json"),
    *(part.name for part in fields(Machine)),
    "utc",
)


@lru_cache
def machine(device: str) -> Machine:
    """The machine of this process; the commit ends in + when the checkout has changes."""
    name, driver = cpu_name(), ""
    if device == "cuda":
        name, driver = (
            torch.cuda.get_device_name(),
            output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        )
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = ""
    commit = output("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")
    dirty = output("git", "-C", str(Path(__file__).parent), "status", "--porcelain", "--untracked-files=no")
    return Machine(name, driver, torch.__version__, triton, commit + "+" * bool(dirty))


def cpu_name() -> str:
    """Model and threads in use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {torch.get_num_threads()} threads"


def output(*command: str) -> str:
    """First line that a command prints; empty where it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""


def append(path: Path, rows: Sequence[Row], device: str) -> None:
    """Add rows to a CSV file, with its header when it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            p20, p50, p80 = quantiles(row.values)
            values = {key: value for key, value in asdict(row).items() if key in COLUMNS}
            values |= asdict(machine(device)) | {"p20": p20, "p50": p50, "p80": p80, "n": len(row.values)}
            values["config_json"] = json.dumps(row.config, sort_keys=True)
            values["utc"] = datetime.now(UTC).isoformat(timespec="seconds")
            writer.writerow(values)


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20, 50 and 80 % quantiles, to five digits."""
    edges = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    low, middle, high = (float(f"{value:.5g}") for value in edges.tolist())
    return low, middle, high


def time_in_turns(
    calls: dict[str, Callable[[], object]], device: str, budget_s: float = 1.0, least: int = 7, most: int = 200
) -> dict[str, list[float]]:
    """Microseconds of every repetition of each call, competitors in turns, after a warm-up.

    On a GPU the L2 cache is flushed before each repetition and the time is between two events.
    """
    flush = torch.empty(2**28, dtype=torch.int8, device=device) if device == "cuda" else None
    once = {}
    for name, call in calls.items():
        call()
        call()
        once[name] = one_time(call, None)
    turns = max(least, min(most, int(budget_s * 1e6 / max(once.values()))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            times[name].append(one_time(call, flush))
    return times


def one_time(call: Callable[[], object], flush: torch.Tensor | None) -> float:
    """Microseconds of one call."""
    if flush is None and not torch.cuda.is_initialized():
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6
    if flush is not None:
        flush.zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) * 1e3


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 1 GiB reads and writes on the GPU, at the median."""
    source = torch.empty(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    times = time_in_turns({"copy": lambda: target.copy_(source)}, "cuda")["copy"]
    return 2 * source.numel() / (torch.tensor(times).median().item() * 1e-6)


def gpu_extras(call: Callable[[], object]) -> dict[str, tuple[str, float]]:
    """Peak memory above the inputs, launches, and microseconds of the call as a CUDA graph."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    peak = torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    launches = sum(event.count for event in profile.key_averages() if event.device_time_total > 0)
    extras = {"peak_memory": ("MiB", peak / 2**20), "launches": ("launches", float(launches))}
    try:
        extras["time_graph"] = ("us", graph_time(call))
    except RuntimeError as error:  # a competitor that cannot be captured: said, and left out of this metric
        print(f"  no CUDA graph: {str(error).splitlines()[0]}", flush=True)
        torch.cuda.synchronize()
    return extras


def graph_time(call: Callable[[], object], times: int = 20) -> float:
    """Microseconds of one call inside a CUDA graph of `times` calls: the GPU's own time, caches warm."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            call()
    replays = time_in_turns({"graph": graph.replay}, "cuda")["graph"]
    return torch.tensor(replays).median().item() / times
