"""What every benchmark shares: the rows of its CSV, the machine in words, timing, metrics of a GPU, long videos.

Three metrics of time, of a call that Python makes:
- `time`: until its result is there (a CPU), or on a GPU until the device is done; its L2 cache is flushed before.
- `host_time` (GPU only): until the call returns, which is before the device is done. Where it is the longer one, the
  device waits for the host.
- `graph_time` (GPU only): of the kernels alone, launched from a CUDA graph, caches warm.

Schema: name, variant, mode, metric, unit, x_name, x_value, p20, p50, p80, n, config_json, device, driver, torch,
triton, commit, utc. Competitors of a row are timed in turns in the same process, so that ratios hold on a busy machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"


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
    """The `time` of every repetition of each call, in microseconds, competitors in turns, after a warm-up."""
    return {
        name: [whole for whole, _ in times]
        for name, times in both_times_in_turns(calls, device, budget_s, least, most).items()
    }


def both_times_in_turns(
    calls: dict[str, Callable[[], object]], device: str, budget_s: float, least: int, most: int
) -> dict[str, list[tuple[float, float]]]:
    """`time` and `host_time` of every repetition of each call, in microseconds."""
    flush = torch.empty(2**28, dtype=torch.int8, device=device) if device == "cuda" else None
    once = {}
    for name, call in calls.items():
        call()
        call()
        once[name] = one_time(call, None)
    turns = max(least, min(most, int(budget_s * 1e6 / max(once.values()))))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            times[name].append(both_times(call, flush))
    return times


def one_time(call: Callable[[], object], flush: torch.Tensor | None) -> float:
    """The `time` of one call in microseconds."""
    return both_times(call, flush)[0]


def both_times(call: Callable[[], object], flush: torch.Tensor | None) -> tuple[float, float]:
    """`time` and `host_time` of one call, in microseconds."""
    gpu = torch.cuda.is_initialized()
    if flush is not None:
        flush.zero_()
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    returned = time.perf_counter()
    if gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e6, (returned - start) * 1e6


def write_repeated_video(
    path: Path, pictures: Iterable[NDArray[np.uint8]], size: tuple[int, int], fps: int, repeats: int, **options: str
) -> None:
    """Write RGB pictures [H, W, 3] of `size` (W, H) as H.264, encoded once, their packets repeated: long and soon made.

    `options`: of x264; without B-frames every repetition begins where the one before ends.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"bf": "0", **options})
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        packets, count = [], 0
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base, count = count, Fraction(1, fps), count + 1
            packets += stream.encode(frame)
        packets += stream.encode(None)
        times = [(packet.pts, packet.dts, packet.time_base) for packet in packets]
        for repeat in range(repeats):
            for packet, (pts, dts, base) in zip(packets, times, strict=True):
                later = int(Fraction(repeat * count, fps) / base)
                packet.stream, packet.time_base, packet.pts, packet.dts = stream, base, pts + later, dts + later
                container.mux(packet)


Metrics = dict[str, tuple[str, list[float]]]  # unit and values by name


def measure_in_turns(
    calls: dict[str, Callable[[], object]], device: str, budget_s: float = 1.0, quick: bool = False
) -> dict[str, Metrics]:
    """Metrics of each call: its `time`, and on a GPU all of `gpu_metrics`, in `side_stream`.

    `quick`: a fifth of the budget, and no launches, as the profiler takes longest.
    """
    times = both_times_in_turns(calls, device, budget_s / 5 if quick else budget_s, 7, 200)
    metrics: dict[str, Metrics] = {name: {"time": ("us", [t for t, _ in values])} for name, values in times.items()}
    if device == "cuda":
        for name, call in calls.items():
            metrics[name]["host_time"] = ("us", [host for _, host in times[name]])
            metrics[name] |= gpu_metrics(name, call, launches=not quick)
    return metrics


def gpu_metrics(name: str, call: Callable[[], object], launches: bool) -> Metrics:
    """`graph_time`, peak memory above the inputs and, if wanted, launches."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    metrics: Metrics = {"peak_memory": ("MiB", [(torch.cuda.max_memory_allocated() - before) / 2**20])}
    if launches:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        count = sum(event.count for event in profile.key_averages() if event.device_time_total > 0)
        metrics["launches"] = ("launches", [float(count)])
    try:
        metrics["graph_time"] = ("us", graph_times(call))
    except RuntimeError as error:  # a competitor that cannot be captured: said, and left out of this metric
        print(f"  {name}: no CUDA graph: {str(error).splitlines()[0]}", flush=True)
    return metrics


def graph_times(call: Callable[[], object], replays: int = 10) -> list[float]:
    """Microseconds of one call inside a CUDA graph of up to 20 calls, at each replay."""
    times = max(1, min(20, int(5000 / one_time(call, None))))
    graph = torch.cuda.CUDAGraph()
    with spare_generator(), torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(times):
            call()
    graph.replay()
    values = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        values.append(begin.elapsed_time(end) * 1e3 / times)
    return values


@contextmanager
def spare_generator() -> Iterator[None]:
    """A capture that fails leaves the random generator unusable: it gets a copy of the generator's state."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    kept = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(kept)


@contextmanager
def side_stream(device: str) -> Iterator[None]:
    """The stream on which everything is built and measured.

    A backward pass runs on the stream of its forward pass, and the default stream cannot be captured.
    """
    if device != "cuda":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


def as_rows(key: tuple[str, str, str], place: tuple[str, float], metrics: Metrics, config: dict[str, Any]) -> list[Row]:
    """A row for each metric of a variant: `key` is name, variant and mode, `place` the x axis."""
    return [Row(*key, metric, unit, *place, values, config) for metric, (unit, values) in metrics.items()]


def show(title: str, metrics: dict[str, Metrics]) -> None:
    """Medians of all variants, and how many times ours each takes: below 1 we lose, and it is printed too."""
    for kind in ("time", "host_time", "graph_time"):
        middle = {name: median(m[kind][1]) for name, m in metrics.items() if kind in m}
        ours = min((value for name, value in middle.items() if name.startswith("ours")), default=None)
        parts = [
            f"{name} {value:.4g}" + (f" ({value / ours:.2f}x)" if ours and not name.startswith("ours") else "")
            for name, value in sorted(middle.items(), key=lambda item: item[1])
        ]
        if parts:
            print(f"{title} {kind} us: " + ", ".join(parts), flush=True)


def median(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).median().item()


def build_parser(doc: str | None, output: str) -> argparse.ArgumentParser:
    """The options of every benchmark of operators; `output` names the file of rows, {device} in it the device."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="the most telling shapes, few repetitions")
    parser.add_argument("--output", type=Path, help=f"default: results/{output} beside this file")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; its own default otherwise")
    return parser


def copy_bandwidth_rows(device: str) -> tuple[float, list[Row]]:
    """Bytes a second that a copy of 1 GiB reads and writes on a GPU, and its row; 0 and none on a CPU."""
    if device != "cuda":
        return 0.0, []
    source = torch.empty(2**30, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / (median(graph_times(lambda: target.copy_(source))) * 1e-6)
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s", flush=True)
    return bandwidth, [Row("copy", "torch", "forward", "bandwidth", "GB/s", "bytes", 2.0**30, [bandwidth / 1e9])]


def bandwidth_share(metrics: Metrics, least_bytes: int, bandwidth: float) -> Metrics:
    """The share of the copy bandwidth that the least traffic of a call takes in its `graph_time`."""
    if "graph_time" not in metrics:
        return {}
    values = metrics["graph_time"][1]
    return {"copy_bandwidth_share": ("%", [100 * least_bytes / (value * 1e-6) / bandwidth for value in values])}
