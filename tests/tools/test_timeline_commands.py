"""Commands about long videos know first that they cannot write, and one damaged video stops no other."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ace_dist.classifier import Classifier
from ace_dist.cli.timelines import calibrate, evaluate_timelines, segment, watch
from ace_dist.data import run_inputs
from ace_dist.segment import formats
from ace_dist.utils.errors import ConfigError, DataError
from ace_dist.utils.files import check_writable


@pytest.fixture(autouse=True)
def any_folder_is_a_run(monkeypatch):
    for name in ("check_model_folder", "run_config"):
        monkeypatch.setattr(run_inputs, name, lambda folder: None)


@pytest.fixture
def classifier(monkeypatch):
    """Segments every video that is not called damaged; `asked` says of which ones it was asked."""

    def answer(video, *_, **__):
        found.asked.append(video)
        if Path(video).stem == "damaged":
            raise DataError(f"video {video} ends too early")
        return SimpleNamespace(table=lambda: "a table", deviations=None)

    found = SimpleNamespace(asked=[], segment=answer, calibration=SimpleNamespace(is_calibrated=True))
    monkeypatch.setattr(Classifier, "load", lambda *_, **__: found)
    monkeypatch.setattr(Classifier, "from_run", lambda *_, **__: pytest.fail("loaded before the check"))
    monkeypatch.setitem(formats.FORMS, ".json", lambda timeline: "{}")
    return found


def test_one_damaged_video_leaves_the_others_done(classifier, tmp_path, capsys):
    names = [f"{tmp_path}/{name}.mp4" for name in ("first", "damaged", "last")]
    with pytest.raises(DataError, match=r"1 of 3 videos were left out:\n.*damaged.mp4 ends too early"):
        segment(
            ["run=any", f"video=[{', '.join(names)}]", "actions=[lift lid, push lever]", f"output={tmp_path}/*.json"]
        )
    assert classifier.asked == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.json", "last.json"]
    assert "damaged.mp4: left out" in capsys.readouterr().err


def test_one_video_alone_says_what_is_wrong_with_it(classifier):
    with pytest.raises(DataError, match="^video damaged.mp4 ends too early$"):
        segment(["run=any", "video=damaged.mp4", "actions=[lift lid, push lever]"])


@pytest.mark.parametrize(("command", "words"), [(segment, ["video=a.mp4"]), (watch, ["source=a.mp4"])])
def test_labels_that_were_forgotten_are_asked_for_before_the_model_is_loaded(command, words, monkeypatch):
    monkeypatch.setattr(Classifier, "load", lambda *_, **__: pytest.fail("loaded before the check"))
    with pytest.raises(ConfigError, match=r"needs actions='\[...\]', or a procedure=FILE whose steps are the labels"):
        command(["run=any", *words])


@pytest.mark.parametrize("name", ["notes.txt/out/*.json", "taken/*.json"])
def test_outputs_that_cannot_be_written_are_known_before_a_video_is_read(name, classifier, tmp_path):
    """A folder below a file, and a folder of the file's name: root may write anywhere else, so modes prove nothing."""
    (tmp_path / "notes.txt").write_text("a file")
    (tmp_path / "taken" / "a.json").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        segment(["run=any", "video=a.mp4", "actions=[lift lid]", f"output={tmp_path}/{name}"])
    assert not classifier.asked


@pytest.mark.parametrize(("command", "name"), [(calibrate, "calibration.json"), (evaluate_timelines, "timelines.json")])
def test_a_run_that_cannot_be_written_is_known_before_it_is_loaded(command, name, classifier, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=name):
        command([f"run={tmp_path}", "videos=any.csv"])


def test_the_check_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "new" / "deeper" / "file.json")
    assert not list(tmp_path.iterdir())
