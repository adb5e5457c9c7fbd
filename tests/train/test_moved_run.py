"""A run is bound to what it read, not to where that lay: folders move, paths are spelled in other ways, files go."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ace_dist import Classifier
from ace_dist.config import assets_dir, load_config, read_config
from ace_dist.data.run_inputs import run_config
from ace_dist.evaluate.export import export_run, read_exported
from ace_dist.evaluate.report import write_report
from ace_dist.evaluate.runs import evaluate_run
from ace_dist.tools.explorer.session import Explorer
from ace_dist.train.trainer import train
from ace_dist.utils.errors import DataError, RunError, UserError

STEPS = (
    "training.batch_size=4", "training.max_steps=4", "training.save_every_steps=2", "training.log_every_steps=1",
    "training.device=cpu",
)  # fmt: skip


def settings(folder, shards, *more):
    """A run of `folder` that names its own trees and label sets, by relative paths."""
    return load_config(
        ["dataset.world.train_clips=32", "dataset.world.test_clips=36", f"dataset.shards={shards}", f"run={folder}",
         "dataset.synonyms=words/trees.json", "dataset.srt=words/srt.json", "dataset.srt_base=words/srt_base.json",
         *STEPS, *more]
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_world, ranks):
    """A working folder with `own`, a copy of shards, `words`, files that settings name, and a finished `run`."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(small_world()[-1].partition("=")[2], place / "own")
    (place / "words").mkdir()
    for source, name in (("synonyms/tabletop", "trees"), ("srt/tabletop", "srt"), ("srt/tabletop_base", "srt_base")):
        shutil.copy(assets_dir() / f"{source}.json", place / "words" / f"{name}.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        train(settings("run", "own"), ranks)
        evaluate_run(place / "run", ranks)
    return place


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of it, as if the run had been trained there, where the test is."""
    shutil.copytree(finished, tmp_path / "place")
    inputs = tmp_path / "place" / "run" / "inputs" / "inputs.json"
    inputs.write_text(inputs.read_text().replace(str(finished), str(tmp_path / "place")))
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def results(run):
    return json.loads((run / "results.json").read_text())


def test_a_moved_run_is_used_without_the_files_that_it_was_trained_with(place, ranks, monkeypatch):
    """Shards, trees and label sets gone or moved, the run elsewhere, another working folder: the same results."""
    before = results(place / "run")
    predictions = (place / "run" / "predictions.json").read_text()
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    shutil.move(place / "run", elsewhere / "moved")
    shutil.move(place / "own", elsewhere / "clips")
    shutil.rmtree(place / "words")
    monkeypatch.chdir(elsewhere)

    with pytest.raises(UserError, match=r"set dataset\.shards to the folder"):
        evaluate_run(elsewhere / "moved", ranks)
    assert evaluate_run(elsewhere / "moved", ranks, shards="clips") == before
    assert (elsewhere / "moved" / "predictions.json").read_text() == predictions
    assert Classifier.from_run("moved").labels(["lift block", "push pin"])[0].tree is not None
    assert len(Explorer(elsewhere / "moved", shards="clips").tests) == 36
    page = write_report(elsewhere / "moved").read_text()
    assert "No frames are shown" in page and "data:image/jpeg" not in page
    page = write_report(elsewhere / "moved", shards="clips").read_text()
    assert "No frames are shown" not in page and page.count("data:image/jpeg") >= 8  # of a clip, and one a class
    export_run(elsewhere / "moved", elsewhere / "export")
    assert Classifier.from_pretrained("export").labels(["lift block", "push pin"])[0].tree is not None


def test_an_export_says_what_it_began_with_and_not_who_made_its_trees(place, ranks):
    """Of `init_from` the run's name and what that one began with; the weight files that settings name were not read.
    Its weights are those of the run to the bit, whatever precision it computed in."""
    trees = json.loads(Path("words/trees.json").read_text())
    made = {"base_url": "http://llm.plant:8000/v1", "hand_edits": [{"editor": "ana", "sheet": "ana.csv"}]}
    Path("words/trees.json").write_text(json.dumps(trees | {"_meta": trees["_meta"] | made}))
    train(settings("child", "own", "init_from=run", "training.precision=bf16", "evaluation.test=true"), ranks)
    evaluate_run(place / "child", ranks)
    export_run(place / "child", place / "out")
    started = json.loads(Path("out/provenance.json").read_text())["started_from"]
    assert list(started) == ["run"] and len(started["run"]["sha256"]) == 64
    assert "- run: run, licence: Apache-2.0 (video), Apache-2.0 (text)" in Path("out/README.md").read_text()
    assert json.loads(Path("out/synonyms.json").read_text())["_meta"] == trees["_meta"]
    ended, exported = load_file("child/model/trained.safetensors"), read_exported(place / "out")[1].state_dict()
    assert all(torch.equal(tensor, exported[name]) for name, tensor in ended.items())


def test_a_run_goes_on_whatever_its_paths_are_called(place, ranks, monkeypatch):
    """A slash more, an absolute path, a scratch copy, another working folder; files of words that are gone."""
    for number, shards in enumerate(("own/", str(place / "own"), f"../{place.name}/own", "scratch")):
        if number == 0:
            train(settings("new", "own", "training.stop_after_steps=1"), ranks)
            shutil.copytree("own", "scratch")
        assert train(settings("new", shards, "training.stop_after_steps=1"), ranks).step == min(4, number + 2)
    shutil.rmtree(place / "words")
    (place / "sub").mkdir()
    monkeypatch.chdir(place / "sub")
    assert train(settings("../new", "../own"), ranks).step == 4
    assert read_config(place / "new").dataset.synonyms == "words/trees.json"  # what the user wrote stays
    assert run_config(place / "new").dataset.shards == str(place / "sub" / ".." / "own")  # where the clips were last
    assert evaluate_run(place / "new", ranks)["base"]


def test_a_run_does_not_go_on_with_other_words_or_clips(place, ranks):
    """The same path with another content is another run; the message's advice works."""
    train(settings("new", "own", "training.stop_after_steps=1"), ranks)
    trees = place / "words" / "trees.json"
    trees.write_text(trees.read_text().replace('"raise"', '"hoist up"'))
    with pytest.raises(RunError, match=r"dataset\.synonyms=words/trees\.json is not the file that it was"):
        train(settings("new", "own"), ranks)
    kept = "dataset.synonyms=new/inputs/synonyms.json"
    assert train(settings("new", "own", kept, "training.stop_after_steps=1"), ranks).step == 2


def test_a_start_that_is_refused_leaves_a_run_as_it_was(place, ranks, small_world):
    """Its `config.yaml` would name clips that it was not trained on, and its earlier starts a start that never was."""
    other = small_world("dataset.world.train_clips=40")[-1].partition("=")[2]
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"holds other training clips than run .* began with"):
        train(settings("run", other), ranks)
    after = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} <= {"lock.json"}
    assert before.keys() <= after.keys() and read_config(place / "run").dataset.shards == "own"


def test_results_of_other_clips_go_elsewhere(place, ranks, small_world):
    """Next month's videos are tested, but not into the results of the run's own; a read-only run writes nowhere."""
    before = (place / "run" / "results.json").read_bytes()
    other = small_world("dataset.world.test_clips=24")[-1].partition("=")[2]
    with pytest.raises(RunError, match=r"holds other test clips \(24\) than run .* began with \(36\); .* output=DIR"):
        evaluate_run(place / "run", ranks, shards=other)
    files = sorted(path for path in (place / "run").rglob("*"))
    tested = evaluate_run(place / "run", ranks, shards=other, output=place / "next")
    page = write_report(place / "run", output=place / "next")
    assert page == place / "next" / "report.html" and (place / "next" / "figures" / "srt_accuracy.svg").is_file()
    assert results(place / "next") == tested
    assert sorted(path for path in (place / "run").rglob("*")) == files
    assert (place / "run" / "results.json").read_bytes() == before


def test_a_run_of_an_earlier_version_says_what_it_lacks(place, ranks):
    """Without `inputs/` a run works where its files are; where they are not, one sentence says where to put them."""
    before = results(place / "run")
    shutil.rmtree(place / "run" / "inputs")
    assert evaluate_run(place / "run", ranks) == before
    os.rename(place / "words" / "trees.json", place / "trees.json")
    wanted = r"no copy of dataset\.synonyms=words/trees\.json .* copy it to .*run/inputs/synonyms\.json"
    with pytest.raises(RunError, match=wanted):
        run_config(place / "run")
    (place / "run" / "inputs").mkdir()
    os.rename(place / "trees.json", place / "run" / "inputs" / "synonyms.json")
    assert evaluate_run(place / "run", ranks) == before
