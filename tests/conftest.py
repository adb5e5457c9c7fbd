"""Fixtures shared by all tests: small trees, small encoders, and a way to run launchers as a user does."""

import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest

from ace_dist.concepts import Action, SynonymTrees

ROOT = Path(__file__).resolve().parents[1]
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell hands it to what it starts with `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C in the processes that they start


def pytest_collection_modifyitems(config, items):
    """Without a CUDA device a plain `pytest` skips the tests marked `gpu`; asked for by `-m gpu`, they run and fail."""
    import torch

    if "gpu" not in config.getoption("-m") and not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device (make test-gpu)"))


def pytest_ignore_collect(collection_path, config):
    """`-m gpu` imports the files that have such tests alone: the others take each of its workers most of a minute."""
    if config.getoption("-m") == "gpu" and collection_path.match("test_*.py"):
        return not re.search(r"mark\.gpu|kernel_reference", collection_path.read_text()) or None
    return None


@pytest.fixture(autouse=True)
def fresh_seed():
    """A new seed of torch and of `random` for every test, printed with a failure; `TEST_SEED=N pytest ...` draws the
    same again, also from `rng`.
    """
    import torch

    seed = int(os.environ.get("TEST_SEED") or secrets.randbits(32))
    print(f"TEST_SEED={seed}")
    torch.manual_seed(seed)
    random.seed(seed)
    return seed


@pytest.fixture
def rng(fresh_seed):
    return np.random.default_rng(fresh_seed)


def small_tree(root, *synonyms):
    """A tree whose second order is the first, in another order for every child."""
    verbs = [root, *synonyms]
    return {verb: [verb, *(other for other in reversed(verbs) if other != verb)] for verb in verbs}


@pytest.fixture
def trees():
    """Six verbs, one phrasal, two of which share a synonym."""
    return SynonymTrees(
        {
            "spin": small_tree("spin", "rotate", "turn"),
            "lift": small_tree("lift", "raise", "hoist"),
            "push": small_tree("push", "shove", "nudge"),
            "put down": small_tree("put down", "set down", "lower"),
            "shake": small_tree("shake", "rattle", "jiggle"),
            "drop": small_tree("drop", "let fall", "lower"),
        }
    )


@pytest.fixture
def actions():
    """Seen actions with shared verbs and shared objects."""
    return [Action("spin", "block"), Action("lift", "block"), Action("spin", "pin"), Action("put down", "side panel")]


@pytest.fixture(scope="session")
def launch():
    """Run a launcher in a subprocess: `launch("train", "experiment=demo", ranks=2)` goes through DeepSpeed's launcher.

    Returns the completed process with text output; `check=False` for launches that must fail.
    """

    def run(name, *settings, ranks=0, check=True, timeout=600, cwd=None, stdin=None):
        script = str(ROOT / "launchers" / f"{name}.py")
        folder = Path(sys.executable).parent
        command = [sys.executable, script] if not ranks else [
            str(folder / "deepspeed"), "--num_gpus", str(ranks), script,
        ]  # fmt: skip
        environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *settings],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            cwd=cwd,
            stdin=stdin,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{name} {settings} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture(scope="session")
def small_world(tmp_path_factory, launch):
    """Settings of a tabletop of 32 training and 36 test clips, its shards built when first asked for.

    `small_world("dataset.clips_per_shard=1")` is another world, which has these settings too.
    """
    built = {}

    def build(*settings):
        if settings not in built:
            folder = tmp_path_factory.mktemp("shards")
            built[settings] = [
                "dataset.world.train_clips=32", "dataset.world.test_clips=36", *settings, f"dataset.shards={folder}",
            ]  # fmt: skip
            launch("build_shards", *built[settings])
        return built[settings]

    return build


@pytest.fixture
def six_steps(small_world, ranks):
    """`six_steps(folder, "key=value", ...)`: train six steps of four clips, saved every second; returns the outcome.

    `world`: settings that make another `small_world`.
    """
    from ace_dist.config import load_config
    from ace_dist.train.trainer import train

    def run(folder, *settings, world=()):
        config = load_config(
            [*small_world(*world), f"run={folder}", "training.batch_size=4", "training.max_steps=6",
             "training.log_every_steps=1", "training.save_every_steps=2", "training.device=cpu", *settings]
        )  # fmt: skip
        return train(config, ranks)

    return run


@pytest.fixture
def phone():
    """An empty page of phone width in headless Chromium; `foreign` and `errors` hold what it asked of other machines
    and what went wrong in it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.foreign, page.errors = [], []
        page.on("request", lambda request: page.foreign.append(request.url) if is_foreign(request.url) else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.set_default_timeout(180_000)  # two busy cores
        yield page
        browser.close()


def is_foreign(url):
    """Whether a request leaves this machine."""
    parts = urlparse(url)
    return parts.scheme in ("http", "https", "ws") and parts.hostname != "127.0.0.1"


@pytest.fixture(scope="module")
def ranks():
    """This process as a group of one; what that sets in the environment goes with it."""
    from ace_dist.utils.distributed import connect, disconnect

    before = dict(os.environ)
    yield connect("cpu")
    disconnect()
    os.environ.clear()
    os.environ.update(before)
