"""Every method of the paper's tables trains and is tested on one loader, loop and evaluator, and can be exported.

One process trains them all on a tiny tabletop, four steps each (`train_methods.py`); the tests look at what it left.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import golden
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from train_methods import METHODS, STEPS

from ace_dist import Classifier
from ace_dist.config import assets_dir
from ace_dist.evaluate.export import export_run
from ace_dist.evaluate.run_files import read_run
from ace_dist.utils.errors import RunError

pytestmark = pytest.mark.slow

TRAINED = {  # per method: parts of the model that train, as prefixes; nothing else may
    "ace": ["text.text_projection", "video.blocks.3", "video.blocks.4", "video.blocks.5"],
    "procvlr": ["video.blocks.3", "video.blocks.4", "video.blocks.5"],
    "vifi_ft": ["similarity.log_scale", "text.text_model.encoder.layers.0", "text.text_model.encoder.layers.1",
                "text.text_model.final_layer_norm", "text.text_projection", "video"],
    "vifi_pr": ["text.prompts", "video.prompts"],
    "bike": ["similarity.log_scale", "video"],
    "text4vis": ["similarity.log_scale", "video"],
    "lavila": ["text.text_model.encoder.layers.0", "text.text_model.encoder.layers.1",
               "text.text_model.final_layer_norm", "text.text_projection", "video"],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of one run a method."""
    folder = tmp_path_factory.mktemp("methods")
    script = Path(__file__).with_name("train_methods.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def read(run, name):
    return json.loads((run / name).read_text())


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_the_table(runs, method):
    """`results.json` has every column, its classes are the 12 and 6 of the world, and losses are finite."""
    results, predictions = read(runs / method, "results.json"), read(runs / method, "predictions.json")
    assert results["method"] == ("ace" if method.startswith("ace") else method)
    for part in ("base", "novel", "hm"):
        assert all(0 <= results[part][score] <= 100 for score in ("accuracy", "f1"))
    assert len(results["srt"]["runs"]) == 10
    assert (len(predictions["base"]["classes"]), len(predictions["novel"]["classes"])) == (12, 6)
    lines = [json.loads(line) for line in (runs / method / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == (0 if method == "random" else STEPS) and all(map(math.isfinite, losses))


def test_both_kinds_of_clips_among_all_classes(runs):
    """`gzsl` and `srt_base` are those of the predictions: 18 classes, base ones first; the curve ends in both modes."""
    results, predictions = read(runs / "ace", "results.json"), read(runs / "ace", "predictions.json")
    together = predictions["gzsl"]
    for part, classes in (("base", predictions["base"]["classes"]), ("novel", predictions["novel"]["classes"])):
        entry, alone = together[part], predictions[part]
        assert entry["classes"] == predictions["base"]["classes"] + predictions["novel"]["classes"]
        shown = {id_: entry["classes"][label] for id_, label in zip(entry["ids"], entry["labels"], strict=True)}
        assert shown == dict(zip(alone["ids"], (classes[label] for label in alone["labels"]), strict=True))
        right = [a == b for a, b in zip(entry["labels"], entry["predictions"], strict=True)]
        assert results["gzsl"][part]["accuracy"] == pytest.approx(100 * sum(right) / len(right))
    curve = results["gzsl"]["curve"]
    assert curve["novel"][0] == 0 and curve["base"][-1] == 0 and 0 <= curve["area"] <= 100
    # With all the bias on one side each kind chooses among its own: the scores of the separate modes.
    assert curve["base"][0] == pytest.approx(results["base"]["accuracy"])
    assert curve["novel"][-1] == pytest.approx(results["novel"]["accuracy"])
    assert len(results["srt_base"]["runs"]) == 10 and results["srt_base"]["runs"][0] == results["base"]
    assert read(runs / "random", "results.json")["gzsl"]["base"]["accuracy"] == pytest.approx(100 / 18)


def test_golden_losses(runs):
    """Every loss and score of every method is the number of `golden.txt`: to the bit on a machine of the same kind.

    Elsewhere sums run in another order: losses may differ by rounding, and a score by a clip that sat on the fence.
    """
    written_on, expected = golden.read()
    found = golden.numbers(golden.lines_of(runs))
    assert found.keys() == expected.keys()
    if written_on == golden.machine():
        assert {name: (found[name], expected[name]) for name in found if found[name] != expected[name]} == {}
    for name, value in found.items():
        if "loss" in name:
            assert value == pytest.approx(expected[name], rel=1e-3 if "bf16" in name else 1e-5), name


@pytest.mark.parametrize("method", TRAINED)
def test_what_trains(runs, method):
    """Exactly the parts that the method's authors train, and each of them moved."""
    trained = load_file(runs / method / "model" / "trained.safetensors")
    prefixes = tuple(f"{part}" for part in TRAINED[method])
    assert all(name.startswith(prefixes) for name in trained)
    assert all(any(name.startswith(part) for name in trained) for part in TRAINED[method])
    if "video" in prefixes:
        frozen = load_file(runs / method / "model" / "frozen.safetensors")
        assert not any(name.startswith("video.") for name in frozen)
    start = {"lavila": "spacetime", "ace": "video", "procvlr": "video"}.get(method, "vit")
    before = load_file(assets_dir() / "weights" / "tabletop" / f"{start}.safetensors")
    moved = [
        n for n, t in trained.items() if n.startswith("video.") and n[6:] in before and (t - before[n[6:]]).abs().max()
    ]
    assert moved or method == "vifi_pr"


def test_procvlr_and_ace_differ_in_the_method_alone(runs):
    """The paper's one-to-one baseline: every setting of data, model, loader and training is the same but the text's."""
    ace, procvlr = (OmegaConf.to_container(OmegaConf.load(runs / name / "config.yaml")) for name in ("ace", "procvlr"))
    for config in (ace, procvlr):
        del config["method"], config["run"]
        assert config["model"]["text"].pop("train_projection") is (config is ace)
    assert ace == procvlr


@pytest.mark.parametrize(
    ("method", "switch"),
    [("ace_no_leaf", "leaf_augmentation"), ("ace_no_shadow", "shadow_negatives"), ("ace_no_random", "random_labels"),
     ("ace_no_fixed", "fixed_labels")],
)  # fmt: skip
def test_ablations_switch_one_thing_off(runs, method, switch):
    whole, ablated = (OmegaConf.load(runs / name / "config.yaml").method for name in ("ace", method))
    assert [key for key in whole if whole[key] != ablated[key]] == [switch] and ablated[switch] is False


def test_random_is_what_guessing_expects(runs):
    """Accuracy 1/K, the same in every run of the SRT; the report knows that it is an expectation."""
    results = read(runs / "random", "results.json")
    assert results["base"]["accuracy"] == pytest.approx(100 / 12) and results["novel"]["accuracy"] == pytest.approx(
        100 / 6
    )
    assert results["srt"]["accuracy_std"] == 0
    assert read_run(runs / "random").results == results  # which checks scores against predictions for all others


def test_adamw_continues_bit_for_bit(runs):
    """Its two moments are in the checkpoint, and its count of steps follows from the step."""
    whole, resumed = (
        load_file(runs / name / "model" / "trained.safetensors") for name in ("vifi_ft", "vifi_ft_resumed")
    )
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("method", ["ace", "bike", "vifi_pr"])
@torch.no_grad()
def test_an_export_is_the_same_classifier(runs, tmp_path, method):
    """From its folder alone, without a path of the machine in it."""
    export_run(runs / method, tmp_path / "out")
    ours, theirs = Classifier.from_run(runs / method), Classifier.from_pretrained(tmp_path / "out")
    video = torch.randn(2, 4, 3, 48, 48)
    assert torch.equal(ours.model.encode_video(video), theirs.model.encode_video(video))
    assert ours.trees.children("lift") == theirs.trees.children("lift")
    for name in ("config.yaml", "README.md", "provenance.json", "labels.json", "results.json"):
        assert str(runs) not in (tmp_path / "out" / name).read_text()
    with pytest.raises(RunError, match="exists; choose another folder or delete it"):
        export_run(runs / method, tmp_path / "out")
    for place in (runs, runs / method):  # nobody is told to delete the run
        with pytest.raises(RunError, match="is or holds the run that is exported; choose another folder$"):
            export_run(runs / method, place)


@torch.no_grad()
def test_transformers_loads_the_encoders(runs, tmp_path):
    """TimeSformer with the projection as its classifier, CLIP's text tower, and its tokenizer."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, TimesformerForVideoClassification

    export_run(runs / "ace", tmp_path / "out")
    ours = Classifier.from_pretrained(tmp_path / "out").model
    video = TimesformerForVideoClassification.from_pretrained(tmp_path / "out" / "video").eval()
    text = CLIPTextModelWithProjection.from_pretrained(tmp_path / "out" / "text").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "text")
    clips, phrases = torch.randn(2, 4, 3, 48, 48), ["spin block", "lay down the side panel", "don't"]
    assert (video(clips).logits - ours.encode_video(clips)).abs().max() < 1e-4
    embeds = text(**tokenizer(phrases, padding=True, return_tensors="pt")).text_embeds
    assert (embeds - ours.text(phrases)).abs().max() < 1e-5


def test_what_cannot_be_exported_says_why(runs, tmp_path):
    with pytest.raises(RunError, match="has no model to export"):
        export_run(runs / "random", tmp_path / "out")
    with pytest.raises(RunError, match="is no export"):
        Classifier.from_pretrained(runs / "ace" / "model")
    assert not list(tmp_path.iterdir())


def test_a_table_of_the_paper_in_one_command(small_world, launch, tmp_path):
    """`experiment=TABLE dataset=NAME` trains every row and seed and ends in the table; again, with no run."""
    command = ["experiment=figure5", "dataset=tabletop", "seed=0..1", f"folder={tmp_path}", *small_world(),
               "training.max_steps=1", "training.batch_size=2", "training.device=cpu"]  # fmt: skip
    printed = launch("sweep", *command).stdout
    made = [json.loads((tmp_path / f"figure5_tabletop/row-ace_seed-{n}/results.json").read_text()) for n in (0, 1)]
    mean = statistics.fmean(run["base"]["accuracy"] for run in made)
    row = next(line for line in printed.splitlines() if line.startswith("| ACE "))
    assert "2 of 2" in row or "| 2 " in row
    assert f"| {mean:.1f} ± " in row
    again = launch("sweep", *command).stdout
    assert "of which 0 to submit" in again and row in again
