"""The wheel in fresh environments outside of the checkout, as a user of pip has it: `make test-long`.

Needs the network. uv links packages out of its cache where it has them: 20 s an environment then, 6 GB where not.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_worlds import numbered_frames, write_video
from page_processes import HANGS_AFTER_S
from ports import free_port

from ace_dist import __version__

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
WORLD = ("dataset.world.train_clips=16", "dataset.world.test_clips=36", "dataset.workers=1")
SHORT = ("training.max_steps=2", "training.batch_size=4", "training.device=cpu")
LABELS = "actions=[spin block, lift mug]"


def clean_environment():
    """Without what would let this checkout and its environment be found."""
    return {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def install(tmp_path_factory):
    """`install("[train]")`: the folder of a user who has installed the wheel with these extras, with a video in it."""
    if UV is None:
        pytest.skip("no uv: pip install uv")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True, env=clean_environment())
    (wheel,) = folder.glob("*.whl")

    def build(extras=""):
        home = tmp_path_factory.mktemp("home")
        python = home / "venv" / "bin" / "python"
        packages = [
            "--python",
            python,
            "--constraint",
            ROOT / "constraints.txt",
            f"ace-dist{extras} @ {wheel.as_uri()}",
        ]
        for words in (["venv", "--python", sys.executable, home / "venv"], ["pip", "install", *packages]):
            subprocess.run([UV, words[0], "--quiet", *words[1:]], check=True, env=clean_environment())
        write_video(home / "a.mp4", numbered_frames(24, 48, 64))
        return home

    return build


def ace(home, *words, status=0):
    """What the installed command prints, with an exit status of `status`."""
    done = subprocess.run(
        [home / "venv" / "bin" / "ace", *words], cwd=home, env=clean_environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, timeout=HANGS_AFTER_S,
    )  # fmt: skip
    assert done.returncode == status and "Traceback" not in done.stdout, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def trained(install):
    """The home of a user with `[train,explore]`, who has made a small demo and exported it."""
    home = install("[train,explore]")
    said = ace(home, "demo", *WORLD, *SHORT, "ranks=1")
    assert "$ ace train experiment=demo method=procvlr" in said and "report: runs/demo/report.html" in said
    training = said.split("$ ace train experiment=demo run=")[-1].split("$ ace report")[0].rstrip().splitlines()[1:]
    assert training[0].startswith("classes: 12 base, 6 novel"), "our lines are first"
    table = [line.split()[:1] for line in training].index(["method"])
    rest = [line for line in training[table:] if re.match(r"(train|pace|loader|report|attention|weights)\b", line)]
    assert any(line.startswith("chance") for line in training[table:]) and not rest, "the table is last, with its notes"
    assert not re.search(r"\r|TFLOP|untested optimizer|\[WARNING\]", said)
    environment = json.loads((home / "runs" / "demo" / "environment.json").read_text())
    assert environment["command"].startswith("python -m ace_dist train ") and environment["git"]["commit"] is None
    ace(home, "export", "run=runs/demo", "output=exported")
    return home


def test_a_trained_run_is_used_from_the_wheel(trained):
    """Classified, cut into actions, evaluated again with the same numbers, and shown on a page."""
    assert "%  spin block" in ace(trained, "classify", "run=runs/demo", "video=a.mp4", LABELS)
    ace(trained, "segment", "run=runs/demo", "video=a.mp4", LABELS, "output=a.json")
    assert (trained / "a.json").is_file()
    results = (trained / "runs" / "demo" / "results.json").read_bytes()
    ace(trained, "evaluate", "run=runs/demo", "ranks=1")
    assert (trained / "runs" / "demo" / "results.json").read_bytes() == results
    assert "window.gradio_config = {" in page_of(trained, "run=runs/demo")


def page_of(home, *words):
    """What the explorer serves at its address."""
    import httpx2

    port = free_port()
    with subprocess.Popen(
        [home / "venv" / "bin" / "ace", "explore", *words, f"port={port}"], cwd=home, env=clean_environment()
    ) as server:
        try:
            end = time.monotonic() + HANGS_AFTER_S
            while time.monotonic() < end:
                assert server.poll() is None
                try:
                    return httpx2.get(f"http://127.0.0.1:{port}").text
                except httpx2.TransportError:
                    time.sleep(0.5)
            raise AssertionError("the page did not open")
        finally:
            server.terminate()


def test_without_extras_it_classifies_and_names_what_training_needs(install, trained):
    home = install()
    shutil.copytree(trained / "exported", home / "exported")
    assert ace(home, "--version") == f"ace-dist {__version__}\n"
    assert "%  spin block" in ace(home, "classify", "run=exported", "video=a.mp4", LABELS)
    ace(home, "shards", "experiment=demo", *WORLD)
    for name, extra in (("train", "train"), ("submit", "cluster"), ("explore", "explore")):
        said = ace(home, name, f"run={trained}/runs/demo" if name == "explore" else "experiment=demo", status=2)
        assert f"pip install 'ace-dist[{extra}]'" in said, said
