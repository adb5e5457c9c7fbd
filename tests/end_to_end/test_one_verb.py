"""Actions that differ in a preposition or an object alone, from a spreadsheet of Windows to a classification."""

import json

import numpy as np
import pytest
from data_worlds import numbered_frames, write_video

from ace_dist import Classifier

pytestmark = pytest.mark.slow

OBJECTS = ["screw into hole", "Screw_on table", "nut-into hole", "screw under table"]  # the last is tested only


@pytest.fixture
def project(tmp_path):
    """Videos and `annotations.csv` with semicolons, backslashes, capitals and three spellings of one verb."""
    rows = ["Video;Start_S;End S;Verb;Object;Split;Group"]
    for number, verb in enumerate(("put", "Put", "PUT ")):
        write_video(tmp_path / f"v{number}.mp4", numbered_frames(120, 64, 80), rate=15)
        for k, text in enumerate(OBJECTS):
            split = "Train" if number < 2 and k < 3 else "test"
            rows.append(f".\\v{number}.mp4;{2 * k};{2 * k + 1.8};{verb};{text};{split};p{number}")
    (tmp_path / "annotations.csv").write_text("\r\n".join(rows))
    return tmp_path


def test_one_verb_from_a_spreadsheet_to_a_classification(project, launch, capsys):
    """Four classes of one verb; shadow negatives take other objects, and the run says so."""
    launch(
        "build_synonyms", "actions=annotations.csv", "output=trees.json", "source=wordnet", "children=3", cwd=project
    )
    launch("build_shards", "dataset=csv", "dataset.annotations=annotations.csv", "dataset.shards=shards", cwd=project)
    settings = ["dataset.shards=shards", "dataset.synonyms=trees.json", "dataset.novel=Put_Screw under-table"]
    trained = launch(
        "train", "experiment=own", "run=run", "training.max_steps=2", "training.batch_size=3", *settings, cwd=project
    )
    assert "no wrong verb (Eq. 6) is left for 'put nut into hole' and 2 more actions" in trained.stdout
    predictions = json.loads((project / "run" / "predictions.json").read_text())
    assert predictions["base"]["classes"] == ["put nut into hole", "put screw into hole", "put screw on table"]
    assert predictions["novel"]["classes"] == ["put screw under table"] and len(predictions["srt"]) == 10
    labels = ["Put_screw-into hole", "put screw  on table", "Place nut into hole"]
    classifier = Classifier.from_run(project / "run")
    result = classifier.classify(project / "v0.mp4", labels, start_s=0, end_s=1.8)
    assert all(label in result for label in labels) and np.isclose(sum(result.values()), 1)
    assert all(len(label.phrases) == 3 and label.tree == "put" for label in result.labels)
    classifier.labels(["Putting screw into hole", "put screw on table"])
    assert "'putting screw into hole' (did you mean 'put screw into hole'?); every label" in capsys.readouterr().out
