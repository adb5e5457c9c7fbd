"""What does stopping cost? The stall of a save, the flags of every step, and each part of a preemption.

    python benchmarks/bench_checkpoint.py saves                # two gloo ranks, the paper's 30.4 M trained parameters
    python benchmarks/bench_checkpoint.py signals --shards S   # two ranks of the demo on its shards, preempted by USR1

`saves` times, in turns on the same engine: our save (the stall: gather; until on the disk: hash, write, fsync and
rename as well, in a thread that has nothing beside it here), DeepSpeed's own (each rank pickles its shard; it neither
hashes nor waits for the disk), and the all-reduce of every step. `signals` starts the
demo, sends USR1 to rank 1 after some steps, and starts it again: the time from the signal to the renamed folder, to the
end of the processes, and from there to the first new step. What a preemption costs is from "saved" to that step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common import Row, append
from torch import nn

from ace_dist.config import load_config

HERE = Path(__file__).resolve()
RESULTS = HERE.parent / "results" / "checkpoint.csv"
LAUNCHER = HERE.parents[1] / "launchers" / "train.py"


@contextmanager
def two_ranks(script: Path, *arguments: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The script as rank 0 and 1 of a group of two, ended on leaving."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
            rank.wait()


class Holder(nn.Module):
    """The encoders as an engine wants them, without labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def time_saves(stage: int, turns: int) -> None:
    """One rank of `saves`; rank 0 appends the rows."""
    from ace_dist.models.build import build_model
    from ace_dist.train.checkpoint import Checkpoints
    from ace_dist.train.engine import Engine
    from ace_dist.utils.distributed import connect, disconnect

    ranks = connect("cpu")
    config = load_config(
        ["experiment=ata_ace", "model.init=random", "training.device=cpu", "training.precision=fp32",
         f"deepspeed=zero{stage}", "dataset.annotations=none", "dataset.synonyms=none", "dataset.shards=none"]
    )  # fmt: skip
    engine = Engine(config, Holder(build_model(config.model, config.seed)), ranks, 1000)  # type: ignore[arg-type]
    trained = sum(p.numel() for p in engine.module.parameters() if p.requires_grad)
    folder = Path(ranks.gather(tempfile.mkdtemp(dir=os.environ.get("BENCH_DIR")) if ranks.is_first else "")[0])
    checkpoints = Checkpoints(folder, engine, config, "0")
    flags = ranks.hosts
    calls = {
        "ours": lambda turn: checkpoints.save(turn + 1, {}),
        "ours, until on the disk": lambda turn: checkpoints.finish(),
        "DeepSpeed": lambda turn: engine.deepspeed.save_checkpoint(
            str(folder / "theirs"), tag="last", save_latest=False, exclude_frozen_parameters=True
        ),
        "flags": lambda turn: [flags.reduce(bad=0, stop=0, save=0) for _ in range(100)],
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            ranks.barrier()
            start = time.perf_counter()
            call(turn)
            ranks.barrier()
            if turn:  # the first is the warm-up
                times[name].append(time.perf_counter() - start)
    if ranks.is_first:
        shutil.rmtree(folder)
        append(RESULTS, list(save_rows(times, stage, trained)), "cpu")
    disconnect()


def save_rows(times: dict[str, list[float]], stage: int, trained: int) -> Iterator[Row]:
    """Rows of `saves`."""
    mode = f"two gloo ranks, zero{stage} fp32"
    whole = [save + write for save, write in zip(times["ours"], times["ours, until on the disk"], strict=True)]
    times["ours, until on the disk"] = whole
    for name in ("ours", "ours, until on the disk", "DeepSpeed"):
        yield Row("checkpoint", name, mode, "stall", "s", "trained_parameters", trained, times[name])
    ratios = [ours / theirs for ours, theirs in zip(times["ours"], times["DeepSpeed"], strict=True)]
    yield Row("checkpoint", "ours / DeepSpeed", mode, "stall", "ratio", "trained_parameters", trained, ratios)
    flags = [1e4 * seconds for seconds in times["flags"]]  # of 100 calls, in microseconds each
    yield Row("all_reduced_flags", "all-reduce of three flags", mode, "time", "us", "ranks", 2, flags)


def time_signals(shards: str, turns: int) -> None:
    """Preempt and continue the demo, `turns` times, as a scheduler would."""
    times: dict[str, list[float]] = {}
    losses: list[float] = []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            for name, seconds in preempt_once(shards, run).items():
                times.setdefault(name, []).append(seconds)
            losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = {"experiment": "demo", "losses_of_the_last_turn": losses}
    mode = "two gloo ranks, demo"
    append(
        RESULTS,
        [
            Row("preemption", "USR1 to rank 1", mode, name, "s", "ranks", 2, values, config)
            for name, values in times.items()
        ],
        "cpu",
    )


def preempt_once(shards: str, run: Path) -> dict[str, float]:
    """Seconds of each part of one preemption, and of one step."""
    arguments = ["experiment=demo", f"dataset.shards={shards}", f"run={run}", "training.log_every_steps=1"]
    with two_ranks(LAUNCHER, *arguments, "training.stop_after_steps=200") as ranks:
        until(lambda: len(lines(run)) >= 20)
        steps = [1 / json.loads(line)["clips_per_s"] for line in lines(run)[5:]]
        sent = time.time()
        ranks[1].send_signal(signal.SIGUSR1)
        until(lambda: any(run.glob("checkpoints/*/checkpoint.json")))
        saved = next(run.glob("checkpoints/step-*")).stat().st_ctime  # of the rename
        for rank in ranks:
            assert rank.wait() == os.EX_TEMPFAIL
        ended = time.time()
    done = len(lines(run))
    with two_ranks(LAUNCHER, *arguments, "training.stop_after_steps=1"):
        until(lambda: len(lines(run)) > done)
        again = (run / "metrics.jsonl").stat().st_mtime
    batch = load_config(["experiment=demo"]).training.batch_size
    return {
        "step": batch * statistics.median(steps),
        "signal to saved": saved - sent,
        "signal to ended": ended - sent,
        "start to first new step": again - ended,
        "lost in all": again - saved,
    }


def lines(run: Path) -> list[str]:
    """Whole lines of the metrics so far."""
    path = run / "metrics.jsonl"
    return path.read_text().split("\n")[:-1] if path.is_file() else []


def until(true: Callable[[], bool], longest_s: float = 300.0) -> None:
    """Poll until `true()`."""
    end = time.monotonic() + longest_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened for {longest_s:g} s")
        time.sleep(0.005)


def main() -> None:
    """One of the two questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("saves", "signals"))
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--shards", help="the demo's shards (launchers/build_shards.py experiment=demo)")
    arguments = parser.parse_args()
    if arguments.question == "signals":
        time_signals(arguments.shards, arguments.turns)
    elif "RANK" in os.environ:
        time_saves(arguments.stage, arguments.turns)
    else:
        with two_ranks(HERE, *sys.argv[1:]) as ranks:
            for rank in ranks:
                assert rank.wait() == 0


if __name__ == "__main__":
    main()
