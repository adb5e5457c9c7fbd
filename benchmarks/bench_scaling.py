"""Step time and bytes on the wire by ranks and ZeRO stage, what a pre-emption costs, and a model of weak scaling.

    python benchmarks/bench_scaling.py steps --shards DIR      # measured; needs root for a network of its own
    python benchmarks/bench_scaling.py requeue --shards DIR    # measured; inside a SLURM (tests/slurm/local_slurm.py)
    python benchmarks/bench_scaling.py model                   # computed from the measured rows and stated link speeds

`steps` runs in a network namespace, so that the counters of its loopback device see these ranks and nothing else.
Ranks of one machine share its cores: their step times say what two ranks cost here, and not how two machines would
scale. Rows of mode `model` are no measurements; their assumptions stand in `config_json`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from common import Row, append

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = Path(__file__).parent / "results" / "scaling.csv"
SETTINGS = [
    "training.batch_size=8",
    "training.log_every_steps=1",
    "training.save_every_steps=100000",
    "training.device=cpu",
]
WARM, FEW, MANY = 3, 5, 25  # steps: warm-up, then two stretches whose difference is steps without a save
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Fabric:
    """Link speeds and the other assumptions of the model, each with its source."""

    gpus_per_node: int = 8
    node_gb_s: float = 450.0  # NVLink 4, one direction: half of the 900 GB/s of the H100 data sheet
    network_gb_s: float = 50.0  # a GPU's share: one NDR InfiniBand port of 400 Gbit/s each
    latency_us: float = 10.0  # of one hop; assumed
    traffic: float = 1.0  # bytes sent, as a multiple of an all-reduce of the gradients
    overlap: float = 0.0  # share of the communication that hides behind the backward pass; 0 is the worst case


def all_reduce_s(size_bytes: float, gpus: int, fabric: Fabric) -> float:
    """Seconds of a hierarchical ring all-reduce: reduce-scatter and all-gather within a node, a ring across nodes."""
    local = min(gpus, fabric.gpus_per_node)
    nodes = math.ceil(gpus / fabric.gpus_per_node)
    inside = 2 * (local - 1) / local * size_bytes / (fabric.node_gb_s * 1e9)
    across = 2 * (nodes - 1) / nodes * (size_bytes / local) / (fabric.network_gb_s * 1e9)
    hops = 2 * (local > 1) * (local - 1) + 2 * math.ceil(math.log2(nodes)) if gpus > 1 else 0
    return inside + across + hops * fabric.latency_us * 1e-6


def model_rows(step_ms: float, trained: int, gradient_bytes: int, source: str, fabric: Fabric) -> list[Row]:
    """Step time and efficiency at 1 to 512 GPUs with a constant batch per GPU."""
    rows = []
    facts = {
        **asdict(fabric),
        "step_ms_1": step_ms,
        "trained": trained,
        "gradient_bytes": gradient_bytes,
        "step": source,
    }
    for exponent in range(10):
        gpus = 2**exponent
        shown_s = (1 - fabric.overlap) * fabric.traffic * all_reduce_s(trained * gradient_bytes, gpus, fabric)
        total_ms = step_ms + 1e3 * shown_s
        for metric, unit, value in (("step_time", "ms", total_ms), ("efficiency", "%", 100 * step_ms / total_ms)):
            rows.append(Row("weak_scaling", source, "model", metric, unit, "gpus", gpus, [value], facts))
    return rows


def model(output: Path) -> list[Row]:
    """From the measured one-rank step of the tabletop model, and for the paper's encoders from assumed step times.

    What ZeRO 1, the default, sends is the all-reduce times the ratio of the measured bytes of `zero1` and `zero0`.
    """
    step = last_row(output, "zero0", "step_time", 1)
    wire = [float(last_row(output, variant, "wire", 2)["p50"]) for variant in ("zero0", "zero1")]
    fabric = Fabric(traffic=wire[1] / wire[0])
    trained = int(json.loads(step["config_json"])["trained"])
    rows = model_rows(float(step["p50"]), trained, 4, "tabletop, step measured on this CPU", fabric)
    for assumed_ms in (50.0, 200.0):  # no GPU was at hand: the answer for a fast and a slow step
        rows += model_rows(assumed_ms, 30_389_248, 2, f"paper encoders, step assumed {assumed_ms:.0f} ms", fabric)
    return rows


def last_row(output: Path, variant: str, metric: str, ranks: int) -> dict[str, str]:
    """The last measured row of a case."""
    with output.open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["name"], row["variant"], row["metric"]) == ("scaling", variant, metric)
            and float(row["x_value"]) == ranks
        ]
    if not rows:
        raise SystemExit(f"{output} has no measured {metric} of {variant} on {ranks} rank(s): run `steps` first")
    return rows[-1]


def loopback_bytes() -> int:
    """Bytes sent over the loopback device of this network namespace, headers included."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()[8])


def worker(out: Path, settings: Sequence[str]) -> None:
    """One rank: train a few stretches of steps and count what they send."""
    from ace_dist.config import load_config
    from ace_dist.train.health import StopSignal
    from ace_dist.train.run_folder import RunLock
    from ace_dist.train.trainer import build, take_steps
    from ace_dist.utils.distributed import connect, disconnect

    config = load_config(settings)
    ranks = connect(config.training.device)
    with StopSignal() as stop_signal, closing(RunLock(Path(config.run))) as lock:
        training = build(config, ranks, stop_signal, lock)
        sent, start = [], 0
        for steps in (WARM, FEW, MANY):
            ranks.barrier()
            before = loopback_bytes()
            take_steps(training, start, start + steps)
            ranks.barrier()
            sent.append(loopback_bytes() - before)
            start += steps
    if ranks.is_first:
        lines = [json.loads(line) for line in (Path(config.run) / "metrics.jsonl").read_text().splitlines()]
        stretch = lines[WARM + FEW + 1 :]  # the first of a stretch waits for its loader
        params = training.engine.module.model.trainable_parameters()
        result = {
            "step_ms": [1e3 * config.training.batch_size / line["clips_per_s"] for line in stretch],
            "bytes_per_step": (sent[2] - sent[1]) / (MANY - FEW),
            "trained": sum(p.numel() for group in params.values() for p in group),
        }
        out.write_text(json.dumps(result))
    disconnect()


def steps(shards: Path, stages: Sequence[int]) -> Iterator[Row]:
    """ZeRO stages on one rank and on two, in turns; `load` is the machine's load average at the end of a case."""
    for stage in stages:
        for world in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                result = run_ranks(world, stage, shards, Path(folder))
            config = {"world": world, "zero": stage, "trained": result["trained"], "batch": 8, "settings": SETTINGS}
            config["load"] = round(os.getloadavg()[0], 1)
            common = ("scaling", f"zero{stage}", "measured")
            yield Row(*common, "step_time", "ms", "ranks", world, result["step_ms"], config)
            yield Row(*common, "wire", "MiB/step", "ranks", world, [result["bytes_per_step"] / 2**20], config)
            gradients = 4 * result["trained"] * 2 * (world - 1)  # of an all-reduce, all ranks together
            print(
                f"zero{stage}, {world} rank(s): {sorted(result['step_ms'])[MANY // 2]:.0f} ms a step, "
                f"{result['bytes_per_step'] / 2**20:.2f} MiB sent "
                f"(an all-reduce of the gradients: {gradients / 2**20:.2f})",
                flush=True,
            )


def run_ranks(world: int, stage: int, shards: Path, folder: Path) -> dict[str, Any]:
    """Start the ranks of one case; what rank 0 measured."""
    settings = [*SETTINGS, f"dataset.shards={shards}", f"run={folder}/run", f"deepspeed=zero{stage}"]
    settings += [f"training.max_steps={WARM + FEW + MANY}"]
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "OMP_NUM_THREADS": "1"}
    place["GLOO_SOCKET_IFNAME"] = "lo"
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "worker", *settings, "--out", f"{folder}/result.json"],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=(folder / "errors").open("ab"),
        )
        for rank in range(world)
    ]
    if any(process.wait() for process in processes):
        print((folder / "errors").read_text()[-2000:], file=sys.stderr)
        raise SystemExit(f"a rank of zero{stage} with {world} rank(s) failed")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def requeue(shards: Path, turns: int) -> list[Row]:
    """Signal a two-node job at work; what the parts of its way back take. `lost` is work time gone, first to last."""
    parts: dict[str, list[float]] = {"signal_to_requeue": [], "requeue_to_start": [], "start_to_step": [], "lost": []}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        run = Path(folder).absolute() / "run"
        job = subprocess.run(
            [
                sys.executable, ROOT / "launchers" / "submit.py", "cluster=slurm", "cluster.nodes=2",
                f"folder={folder}", *SETTINGS, "training.max_steps=100000", f"dataset.shards={shards}",
                f"run={run}",
            ], check=True, capture_output=True, text=True,
        ).stdout.split("job      ")[1].split(";")[0]  # fmt: skip
        for turn in range(turns):
            before = wait_for_step(run, last_step(run) + 10)
            sent = time.time()
            subprocess.run(["scancel", "--signal=USR1", job], check=True)
            while count(folder, "started") < turn + 2:
                time.sleep(0.05)
            after = wait_for_step(run, last_step(run) + 1)
            requeued, started = (when(folder, kind)[-1] for kind in ("requeued", "started"))
            now = time.time()
            for name, value in zip(
                parts, (requeued - sent, started - requeued, now - started, now - sent), strict=True
            ):
                parts[name].append(value)
            print(
                f"turn {turn}: step {before} -> {after}, " + ", ".join(f"{k} {v[-1]:.1f} s" for k, v in parts.items()),
                flush=True,
            )
        subprocess.run(["scancel", job], check=True)
        time.sleep(5)
    config = {
        "nodes": 2,
        "settings": SETTINGS,
        "note": "tabletop model; SLURM 22.05 holds a requeued job back for 121 s",
    }
    return [
        Row("preemption", "zero1", "measured", name, "s", "ranks", 2, values, config) for name, values in parts.items()
    ]


def last_step(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def wait_for_step(run: Path, step: int) -> int:
    while last_step(run) < step:
        time.sleep(0.05)
    return last_step(run)


def when(folder: str, kind: str) -> list[float]:
    """Seconds since 1970 of every event of a kind in the folder's only journal."""
    text = "".join(path.read_text() for path in Path(folder).glob("*.jsonl"))
    events = [json.loads(line) for line in text.splitlines()]
    return [datetime.fromisoformat(event["utc"]).timestamp() for event in events if event["event"] == kind]


def count(folder: str, kind: str) -> int:
    return len(when(folder, kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("steps", "requeue", "model", "worker"))
    parser.add_argument("settings", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=Path, help="shards of the tabletop world")
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES, help="ZeRO stages of `steps`")
    parser.add_argument("--turns", type=int, default=3, help="pre-emptions")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    given = parser.parse_args()
    if given.part == "worker":
        worker(given.out, given.settings)
        return
    if given.part == "steps" and not os.environ.get("ACE_OWN_NETWORK"):
        again = ["unshare", "--net", "bash", "-c", 'ip link set lo up && exec "$@"', "_", sys.executable, *sys.argv]
        raise SystemExit(subprocess.run(again, env=os.environ | {"ACE_OWN_NETWORK": "1"}, check=False).returncode)
    if given.part != "model" and given.shards is None:
        parser.error("--shards DIR: build them with launchers/build_shards.py")
    shards = given.shards.absolute() if given.shards else Path()
    rows = {
        "steps": lambda: steps(shards, given.stages),
        "requeue": lambda: requeue(shards, given.turns),
        "model": lambda: model(given.out),
    }
    for row in rows[given.part]():  # written one by one: a run that is cut short keeps what it has
        append(given.out, [row], "cpu")


if __name__ == "__main__":
    main()
