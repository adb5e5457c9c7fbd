"""A day in the life, again and again: does anything grow that should not? `make soak` runs it for an hour.

Each round builds shards (killed once on the way), trains on two ranks (killed or told to stop on the way, then
continued), evaluates again, segments a video, and has two clients at once (of HTTP, no browsers: they send what the
page's script would) ask a page of the explorer that serves from the first round to the last; this process classifies
with one `Classifier`. After each round it counts what is left: memory, open
files and threads of the page and of this process, listening ports, processes, entries of /dev/shm and temporary files.
It ends with 1 when a count is larger after the last round than after the second one, or memory by more than a tenth.

    python tests/soak.py --minutes 60
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
MARK = "ACE_DIST_SOAK"  # in the environment of everything that a soak starts, orphans too
WORLD = ["dataset.world.train_clips=16", "dataset.world.test_clips=36"]
STEPS = ["training.batch_size=4", "training.max_steps=8", "training.save_every_steps=2", "training.log_every_steps=1"]
GROWTH = 1.1  # of memory; allocators keep some


class Soak:
    """The folder of a soak, and what runs in it from the first round to the last."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.random = folder, random.Random(0)
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.environment = os.environ | {MARK: str(folder), "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        self.environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
        self.started_with = shared_memory()
        self.round = 0

    def start(self, *words: str) -> subprocess.Popen:
        """A command of `ace`, its output in a file of its own."""
        log = (self.folder / f"{self.round}-{words[0]}.log").open("a")
        code = "import sys; from ace_dist.cli import ace; sys.exit(ace())"
        return subprocess.Popen([sys.executable, "-c", code, *words], env=self.environment, stdout=log, stderr=log)

    def finish(self, *words: str) -> None:
        """A command that must work."""
        status = self.start(*words).wait(timeout=900)
        assert status == 0, f"{words} ended with {status}: see {self.folder}/{self.round}-{words[0]}.log"

    def build(self) -> list[str]:
        """Shards, killed on the way: the same command goes on."""
        settings = [*WORLD, f"dataset.shards={self.folder / f'shards-{self.round}'}"]
        first = self.start("shards", *settings)
        time.sleep(self.random.uniform(2, 6))
        first.kill()
        first.wait()
        self.finish("shards", *settings)
        return settings

    def train(self, shards: list[str]) -> Path:
        """A run that is ended on the way in one of three ways, continued, and evaluated twice with one result."""
        run = self.folder / f"run-{self.round}"
        words = ["train", *shards, *STEPS, f"run={run}", "ranks=2"]
        started = self.start(*words)
        log = run / "metrics.jsonl"
        while started.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) > 2):
            time.sleep(0.1)
        if started.poll() is None:
            self.end(started)
        started.wait(timeout=300)
        self.finish(*words)
        before = json.loads((run / "results.json").read_text())
        self.finish("evaluate", f"run={run}")
        assert json.loads((run / "results.json").read_text()) == before, f"{run}: another result of the same weights"
        return run

    def end(self, started: subprocess.Popen) -> None:
        """Kill the command, kill one of its ranks, or ask it to stop, by turns."""
        ranks = psutil.Process(started.pid).children()
        how = ("kill", "rank", "stop")[self.round % 3]
        if how == "rank" and ranks:
            ranks[-1].kill()
        else:
            started.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)

    def serve(self, run: Path) -> None:
        """The page, which stays."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.page = self.start("explore", f"run={run}", f"port={port}")
        self.address = f"http://127.0.0.1:{port}"
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert self.page.poll() is None, "the explorer did not start"
            time.sleep(0.5)

    def explore(self) -> None:
        """Two visitors at once: each loads the page, sends a video to Clips and to the Timeline, and goes."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self.visit, range(2)))

    def visit(self, number: int) -> None:
        import httpx

        with httpx.Client(base_url=self.address, timeout=120) as client:
            config = json.loads(re.search(r"window\.gradio_config = (.*?);</script>", client.get("/").text, re.S)[1])
            uploads = [f for f in config["dependencies"] if any(t[1] == "upload" for t in f["targets"])]
            assert len(uploads) > 1  # of Clips and the Timeline
            for function in uploads:
                self.upload(client, function, number)

    def upload(self, client: Any, function: dict[str, Any], number: int) -> None:
        """The soak's video, asked for two labels, as the upload button of a page sends it."""
        with self.video.open("rb") as file:
            (path,) = client.post("/gradio_api/upload", files={"files": (f"{number}.mp4", file)}).json()
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "spin block\nlift mug"]
        asked = {"data": data, "fn_index": function["id"], "session_hash": f"s{self.round}{number}{function['id']}"}
        client.post("/gradio_api/queue/join", json=asked).raise_for_status()
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": asked["session_hash"]}) as lines:
            ended = next(line for line in lines.iter_lines() if "process_completed" in line)
        assert json.loads(ended.removeprefix("data: "))["success"] and "ace-message" not in ended, ended

    def classify(self, run: Path) -> None:
        from ace_dist import Classifier

        if self.round == 0:
            self.classifier = Classifier.from_run(run)
        for _ in range(5):
            result = self.classifier.classify(self.video, ["spin block", "lift mug", "juggle balls"])
            assert abs(sum(result.values()) - 1) < 1e-3

    def segment(self, run: Path) -> None:
        """Twice: the second time from the embeddings that the first one kept, with the same result."""
        output = [self.folder / f"timeline-{self.round}-{again}.json" for again in range(2)]
        for path in output:
            words = [f"video={self.video}", "actions=[spin block, lift mug]", f"cache={self.folder / 'embeddings'}"]
            self.finish("segment", f"run={run}", *words, f"output={path}")
        assert output[0].read_bytes() == output[1].read_bytes()

    def counts(self) -> dict[str, float]:
        """What is left now, a while after everything of the round has ended."""
        page, own = psutil.Process(self.page.pid), psutil.Process()
        deadline = time.monotonic() + 30
        while (others := self.others()) and time.monotonic() < deadline:
            time.sleep(0.5)
        alive = [page, own, *page.children(recursive=True), *own.children(recursive=True)]
        ports = {c.laddr.port for process in set(alive) for c in process.net_connections() if c.status == "LISTEN"}
        return {
            "page MiB": page.memory_info().rss / 2**20,
            "page files": page.num_fds(),
            "page threads": page.num_threads(),
            "own MiB": own.memory_info().rss / 2**20,
            "own files": own.num_fds(),
            "own threads": own.num_threads(),
            "ports": len(ports),
            "processes left": len(others),
            "/dev/shm": len(shared_memory() - self.started_with),
            "temporary files": len(self.left_over()),
        }

    def left_over(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    def others(self) -> list[psutil.Process]:
        """Processes of this soak beside this one, the page and their workers."""
        stay = {os.getpid(), self.page.pid}
        stay |= {child.pid for pid in list(stay) for child in psutil.Process(pid).children(recursive=True)}
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder) and process.pid not in stay:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def day(self) -> dict[str, float]:
        run = self.train(self.build())
        if self.round == 0:
            self.video = write_video(self.folder / "action.mp4")
            self.serve(run)
        self.explore()
        self.classify(run)
        self.segment(run)
        counts = self.counts()
        self.round += 1
        return counts


def shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return set(os.listdir(folder)) if folder.is_dir() else set()


def write_video(path: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    import data_worlds

    return data_worlds.write_video(path, data_worlds.numbered_frames(24, 48, 64))


def grown(rounds: list[dict[str, float]]) -> list[str]:
    """What is larger after the last round than after the second one; the first fills caches."""
    early, late = rounds[1], rounds[-1]
    allowed = {name: GROWTH * value if "MiB" in name else value for name, value in early.items()}
    return [f"{name}: {early[name]:.0f} -> {late[name]:.0f}" for name in early if late[name] > allowed[name]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    soak, rounds = Soak(Path(tempfile.mkdtemp(prefix="ace-soak-"))), []
    print(f"in {soak.folder}", flush=True)
    end = time.monotonic() + 60 * options.minutes
    while len(rounds) < 3 or time.monotonic() < end:
        rounds.append(soak.day())
        print(f"round {soak.round}: " + ", ".join(f"{v:.0f} {k}" for k, v in rounds[-1].items()), flush=True)
    left = [str(path.relative_to(soak.folder)) for path in soak.left_over()]
    soak.page.send_signal(signal.SIGTERM)
    soak.page.wait(timeout=30)
    faults = grown(rounds)
    print(
        "\n".join(["grew:", *faults, "temporary files:", *left[:20]])
        if faults
        else f"nothing grew in {len(rounds)} rounds"
    )
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
