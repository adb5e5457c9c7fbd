"""Classifying needs none of the extras, and a missing one is named with the extra that brings it."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from light import BLOCKED

from ace_dist import Classifier, cli
from ace_dist.cli.entry import start
from ace_dist.cli.timelines import calibrate
from ace_dist.data import run_inputs
from ace_dist.segment.procedure import Procedure, Step
from ace_dist.utils.errors import UserError
from ace_dist.utils.extras import EXTRAS, missing_packages_named

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CLASSIFY = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # as if it were not installed
from ace_dist import Classifier
from ace_dist.config import load_config
from ace_dist.data.task import load_test_trees
from ace_dist.models.build import build_model
import ace_dist.cli
assert ace_dist.cli.execute([]) == 0
config = load_config(["experiment=demo"])
classifier = Classifier(config, build_model(config.model, config.seed), load_test_trees(config))
assert abs(sum(classifier.classify(sys.argv[1], ["spin block", "lift mug"]).values()) - 1) < 1e-3
"""


def distributions(extra):
    """Names of an extra's packages, those of the extras in it included."""
    names = []
    for requirement in PROJECT["optional-dependencies"][extra]:
        inner = re.match(r"ace-dist\[(.+)\]", requirement)
        names += [name for part in inner[1].split(",") for name in distributions(part)] if inner else [requirement]
    return {re.match(r"[\w-]+", name)[0].lower().replace("_", "-") for name in names}


def test_a_video_is_classified_without_any_extra(tmp_path):
    from data_worlds import numbered_frames, write_video

    path = write_video(tmp_path / "a.mp4", numbered_frames(24, 48, 64))
    done = subprocess.run([sys.executable, "-c", CLASSIFY, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("module", "extra"), EXTRAS.items())
def test_the_extra_that_is_named_brings_the_package(module, extra):
    installed = importlib.metadata.packages_distributions().get(module, [])
    known = {name.lower().replace("_", "-") for name in installed} or {module}
    brought = distributions(extra)
    assert known & brought or any(name.startswith(f"{module}-") for name in brought)


@pytest.mark.parametrize("words", [["demo"], ["own", "a.csv"], ["train", "experiment=demo"], ["evaluate", "run=r"]])
def test_what_trains_asks_for_its_extra_before_it_does_anything(words, tmp_path, monkeypatch):
    """Not after the minutes of the stages before it, and not once a rank."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"^deepspeed is not installed, .* pip install 'ace-dist\[train\]'$"):
        start(words)
    assert not list(tmp_path.iterdir())


def test_what_fits_and_what_checks_steps_ask_for_scipy_before_a_video_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    said = r"^scipy is not installed, .* pip install 'ace-dist\[train\]'$"
    with pytest.raises(UserError, match=said):
        calibrate([f"run={tmp_path}"])
    with pytest.raises(UserError, match=said):
        Classifier.segment(None, "none.mp4", procedure=Procedure((Step("lift lid"), Step("push lever"))))


def test_all_has_what_the_project_is_built_on():
    """torch and its companions are always there; `all` brings the rest of them."""
    always = {re.match(r"[\w-]+", name)[0].lower().replace("_", "-") for name in PROJECT["dependencies"]}
    expected = {
        "torch", "torchvision", "timm", "transformers", "open-clip-torch", "deepspeed", "triton", "nvidia-dali-cuda130",
        "xformers", "webdataset", "av", "submitit", "openai", "hydra-core", "numba", "scikit-learn", "tensorboard",
    }  # fmt: skip
    assert expected <= always | distributions("all") and not always & {"deepspeed", "submitit", "openai", "numba"}


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (["submit", "cluster=local", "dry_run=true", "experiment=demo"], "submitit"),
        (["explore", "run=runs/none"], "gradio"),
        (["report", "run=runs/none"], "matplotlib"),
    ],
)
def test_a_missing_package_is_one_sentence(words, module, monkeypatch):
    """A command names the extra; a package that is no extra's is a bug and stays one."""
    for name in [name for name in sys.modules if name.split(".")[0] == module or re.match(USERS[module], name)]:
        monkeypatch.delitem(sys.modules, name)
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            monkeypatch.delattr(sys.modules[parent], child, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(run_inputs, "run_config", lambda folder: None)
    with pytest.raises(UserError, match=rf"{module} is not installed.*pip install 'ace-dist\[{EXTRAS[module]}\]'"):
        cli.execute(words)
    with pytest.raises(ModuleNotFoundError), missing_packages_named():
        import no_such_package  # noqa: F401


USERS = {  # modules of ours that import the package, and are imported anew
    "submitit": r"ace_dist\.cluster\.(jobs|submit|sweep)$",
    "gradio": r"ace_dist\.tools\.explorer\.page$",
    "matplotlib": r"ace_dist\.evaluate\.(report|figures|svg)$",
}
