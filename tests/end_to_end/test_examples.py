"""The examples that `ace NAME --help` shows, each run at toy size in the order of their file, in one folder.

Those marked `long` start from annotations alone and take half a minute or more each.
"""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from chat_server import ChatServer
from hub_server import hub_server
from page_processes import HANGS_AFTER_S, run, start_server
from paper_data import write_numbered
from ports import free_port
from small_weights import hf_clip_state, hf_timesformer, openai_clip, saved
from test_own_videos import render_video
from test_page_commands import SHORT, WORLD, blocks, make_checkout

from ace_dist import cli
from ace_dist.config import GROUPS, assets_dir, known_keys
from ace_dist.models.convert.known import KNOWN
from ace_dist.tools.completion import settings
from ace_dist.worlds.tabletop.procedures import write_videos
from ace_dist.worlds.tabletop.world import TabletopConfig

pytestmark = pytest.mark.slow  # the tests of this file build on each other: --dist loadfile

ROOT = Path(__file__).resolve().parents[2]
LINES = [line for line in (assets_dir() / "examples.txt").read_text().splitlines() if line and line[0] != "#"]
LONG = ("demo", "own")
ALONE = (  # in a process of their own: huggingface_hub reads its settings, and a pool its folder, when imported
    "weights get", "export", "weights pretrain",
)  # fmt: skip
PRETRAINING = (
    "pretrain.steps=2", "pretrain.batch_size=4", "pretrain.supervised_steps=2", "pretrain.supervised_batch=4",
    "pretrain.test_clips=8", *WORLD,
)  # fmt: skip
TOY = {  # what is added to the settings of a command so that it ends in seconds
    "demo": (*WORLD, *SHORT, "dataset.workers=1", "ranks=1"),
    "own": (*SHORT, "dataset.workers=1", "ranks=1"),
    "shards build": ("dataset.workers=1",),
    "train": SHORT,
    "submit": SHORT,
    "sweep run": SHORT,
    "weights pretrain": PRETRAINING,
}
SCRIPTS = {  # `ace` starts ranks, each of which imports everything anew; `ace_rank` is the same command as one rank
    "ace": "import sys\nfrom ace_dist.cli import ace\nif __name__ == '__main__':\n    sys.exit(ace())\n",
    "ace_rank": "import sys\nfrom ace_dist.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n",
}


def split_example(line):
    """The words of an example, without `ace`, and what follows a pipe."""
    command, _, pipe = line.partition(" | ")
    return shlex.split(command.partition(" > ")[0], comments=True)[1:], pipe


def toy(name, words):
    """The settings at toy size; a later one wins."""
    world = WORLD if {"experiment=demo", "dataset=tabletop"} & set(words) else ()
    port = (f"port={free_port()}",) if name == "explore" else ()
    return [*words, *world, *TOY.get(name, ()), *port]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a user works: a list of segments, its videos, an export of it, a folder per label, long videos, weights."""
    folder = tmp_path_factory.mktemp("examples")
    make_checkout(folder)
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text)
    write_label_studio(folder)
    for place in ("lift lid/anna", "lift lid/ben", "push lever/anna", "push lever/ben"):
        (folder / "clips" / place).mkdir(parents=True)
        render_video(folder / "clips" / place / "1.mp4", 2.5, (96, 72), 10)
    write_videos(folder / "jobs", TabletopConfig(), train=4, test=2)
    shutil.copy(folder / "jobs/videos/job-test-000.mp4", folder / "shift.mp4")
    render_video(folder / "clip.mp4", 3.0, (96, 72), 10)
    (folder / "job.yaml").write_text(blocks("docs/segmentation.md", "yaml")[0])
    for person in ("07", "08"):
        recording = folder / "ata" / "front" / f"P{person}_worker{person}_table_1"
        write_numbered(recording.with_suffix(".mp4"), 80, 30)
        recording.with_suffix(".txt").write_text("take part 0 30\nSIL 31 44\nfasten screw 45 60\n")
    torch.save(openai_clip(True).state_dict(), folder / "ViT-B-16.pt")
    hf_timesformer().save_pretrained(folder / "timesformer-k400")
    (folder / "weights").mkdir()
    for part in ("video", "text"):  # those of model=clip_b16 are there: the hub's file is of another size
        (folder / f"weights/clip_b16_{part}.safetensors").touch()
    return folder


def write_label_studio(folder):
    """annotations.csv as an export of Label Studio, at 10 frames a second, with its videos beside it."""
    for video in (folder / "line3").iterdir():
        shutil.copy(video, folder)
    tasks = {}
    with (folder / "annotations.csv").open() as file:
        for row in csv.DictReader(file):
            first, last = int(float(row["start_s"]) * 10) + 1, int(float(row["end_s"]) * 10)
            value = {"ranges": [{"start": first, "end": last}], "timelinelabels": [f"{row['verb']} {row['object']}"]}
            drawn = {"type": "timelinelabels", "from_name": "actions", "to_name": "video", "value": value}
            tasks.setdefault(row["video"], []).append(drawn)
    export = [
        {"id": number, "data": {"video": f"/data/local-files/?d={video}"}, "annotations": [{"result": result}]}
        for number, (video, result) in enumerate(tasks.items())
    ]
    (folder / "labels.json").write_text(json.dumps(export))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A home without settings, a model hub and a language model, all of this machine."""
    home = tmp_path_factory.mktemp("home")
    with hub_server() as (hub, address), ChatServer() as chat:
        hub.files[KNOWN["clip_b16"].repository] = {"pytorch_model.bin": saved(hf_clip_state())}
        hub.files[KNOWN["timesformer_k400"].repository] = {"pytorch_model.bin": saved(hf_timesformer().state_dict())}
        yield {
            "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"),
            "HF_HOME": str(home / "hf"), "HF_ENDPOINT": address, "HF_TOKEN": "hf_plant", "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "OPENAI_BASE_URL": chat.url, "OPENAI_API_KEY": "sk-plant",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
        }  # fmt: skip


@pytest.fixture(scope="module")
def server():
    return start_server()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_shows_three_examples_of_settings_that_it_lists(name):
    text = cli.help_text(name)
    shown = [line.strip() for line in text.splitlines() if line.startswith("  ace ")]
    assert len(shown) == 3 and set(shown) <= set(LINES)
    listed = {key.removesuffix("=") for key in settings(text, "")} | set(GROUPS) | {"cluster"}
    if "experiment=" in text or "launcher=" in text or name.startswith("sweep"):
        listed |= set(known_keys())
    for line in shown:
        keys = {word.partition("=")[0] for word in split_example(line)[0] if "=" in word}
        assert not {key for key in keys if not key.startswith("dataset.world.")} - listed, line


RUN = [pytest.param(line, marks=[pytest.mark.long] * (split_example(line)[0][0] in LONG)) for line in LINES]


@pytest.mark.parametrize("line", RUN, ids=[" ".join(line.split())[:90] for line in LINES])
def test_the_example_works(line, folder, server, environment):
    words, pipe = split_example(line)
    name, _ = cli.find_command(words)
    script = "ace" if name in LONG or any(word.startswith("ranks=") for word in words) else "ace_rank"
    argv = [script, *toy(name, words)]
    if name == "explore":
        return served(argv, folder, environment)
    if name in ALONE:
        done = subprocess.run(
            [sys.executable, *argv], cwd=folder, env=os.environ | environment, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        status, said = done.returncode, done.stdout
    else:
        status, said = run(server, argv, folder, environment)
    assert status == 0 and "Traceback" not in said, said
    if pipe:
        assert subprocess.run(pipe, shell=True, input=said, text=True, check=True, stdout=subprocess.PIPE).stdout
    return None


def served(argv, folder, environment):
    """The page opens, and Ctrl-C ends it."""
    command = [sys.executable, *argv]
    with subprocess.Popen(command, cwd=folder, env=os.environ | environment, text=True, stdout=subprocess.PIPE) as page:
        late = threading.Timer(HANGS_AFTER_S, page.kill)
        late.start()
        said = []
        for line in page.stdout:
            said.append(line)
            if "http://127.0.0.1:" in line:
                page.send_signal(signal.SIGINT)
        late.cancel()
        assert page.wait(60) in (0, 130) and any("http://127.0.0.1:" in line for line in said), said
