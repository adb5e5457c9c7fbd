"""Image-text models of open_clip through training, test, export, classification and segmentation."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from image_text_models import small_tokenizer
from safetensors.torch import load_file
from train_encoders import RUNS

from ace_dist import Classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    _, tokenizer = small_tokenizer(folder)
    script = Path(__file__).with_name("train_encoders.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(tokenizer)], capture_output=True, text=True, timeout=900,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("run", RUNS)
def test_an_encoder_goes_all_the_way(folder, run):
    """Losses fall out of two steps, the robustness test has ten runs, an export answers as its run does."""
    results = json.loads((folder / run / "results.json").read_text())
    assert results["method"] == ("ace_sigmoid" if run == "siglip" else "ace")
    assert len(results["srt"]["runs"]) == 10 and results["gzsl"]
    used = json.loads((folder / f"{run}_used.json").read_text())
    run_says, export_says = used["classified"]
    assert sum(run_says.values()) == pytest.approx(1) and used["segments"] >= 1
    assert export_says == pytest.approx(run_says, rel=1e-5)


@torch.no_grad()
def test_an_export_needs_nothing_of_its_machine(folder, tmp_path):
    """The tokenizer and both towers lie in it, and no path leads elsewhere."""
    moved = shutil.copytree(folder / "siglip_export", tmp_path / "moved")
    model = Classifier.from_pretrained(moved).model
    assert model.text(["spin block"]).shape == (1, 48)
    assert str(folder) not in (moved / "config.yaml").read_text()
    stored = load_file(moved / "open_clip/open_clip_model.safetensors")
    assert "visual.trunk.attn_pool.latent" in stored and stored["logit_bias"] == model.similarity.bias


def test_a_licence_follows_what_descends_from_it(folder):
    """Results, run folder and model card of a run from weights that may not be sold say so; others do not."""
    inputs, free = (json.loads((folder / run / "inputs/inputs.json").read_text()) for run in ("siglip", "pe"))
    assert set(inputs["licences"]) == {"video", "text"} and free["licences"] == {}
    notes, others = (json.loads((folder / run / "results.json").read_text())["notes"] for run in ("siglip", "pe"))
    assert any("not for commercial use" in note for note in notes)
    assert not any("commercial" in note for note in others)
    bound, open_to_all = ((folder / f"{run}_export/README.md").read_text() for run in ("siglip", "pe"))
    assert "Not for commercial use" in bound and "Not for commercial use" not in open_to_all


def test_scale_and_bias_begin_with_those_of_the_weights(folder):
    """Two steps later they are still near: exp(3) beside τ = 0.1, and -7."""
    trained = load_file(folder / "siglip/model/trained.safetensors")
    scale = trained["similarity.log_scale"].exp() / 0.1
    assert scale.item() == pytest.approx(torch.tensor(3.0).exp().item(), rel=0.2)
    assert trained["similarity.bias"].item() == pytest.approx(-7, abs=1)
    assert any(path.is_file() for path in (folder / "features").rglob("*"))  # the frozen blocks' output was kept
