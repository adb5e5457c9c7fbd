"""Commands about long videos know first what they cannot write, and keep to the run's split."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from paper_data import random_gtea, write_gtea

from ace_dist.classifier import Classifier
from ace_dist.cli.timelines import calibrate, evaluate_timelines, segment, watch
from ace_dist.config import DatasetConfig, load_config
from ace_dist.data import run_inputs
from ace_dist.segment import formats
from ace_dist.tools.timelines import read_videos
from ace_dist.utils.errors import ConfigError, DataError, LabelError
from ace_dist.utils.files import check_writable
from ace_dist.worlds.tabletop.procedures import write_videos
from ace_dist.worlds.tabletop.world import TabletopConfig


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
        return SimpleNamespace(table=lambda: "a table", deviations=None, video=video)

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


def test_lines_of_watch_go_into_a_folder_that_is_new(classifier, tmp_path):
    """As other outputs do; a file that cannot be written is known before the model is loaded."""
    classifier.stream = lambda *_, **__: (SimpleNamespace(as_line=lambda: "{}") for _ in range(2))
    watch(["run=any", "source=a.mp4", "actions=[lift lid]", f"output={tmp_path}/new/shift.jsonl"])
    assert (tmp_path / "new" / "shift.jsonl").read_text() == "{}\n{}\n"
    with pytest.raises(IsADirectoryError):
        watch(["run=any", "source=a.mp4", "actions=[lift lid]", f"output={tmp_path}/new"])


def test_the_check_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "new" / "deeper" / "file.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (segment, ["video=shift.mp4", "actions=[lift lid]", "output=*.mp4"]),
        (segment, ["video=[a.mp4, shift.mp4]", "actions=[lift lid]", "output=[out/*.json, ../here/*.mp4]"]),
        (segment, ["video=a.mp4", "procedure=job.json", "output=job.json"]),
        (watch, ["source=shift.mp4", "actions=[lift lid]", "output=./shift.mp4"]),
        (evaluate_timelines, ["videos=job.json", "output=job.json"]),
    ],
)
def test_no_output_replaces_what_is_read(command, words, classifier, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("shift.mp4", "job.json"):
        Path(name).write_text("kept")
    with pytest.raises(ConfigError, match="is a file that is read here, and would be lost"):
        command(["run=any", *words])
    assert {path.name: path.read_text() for path in Path().iterdir()} == {"shift.mp4": "kept", "job.json": "kept"}
    with pytest.raises(ConfigError, match="shift.mp4 is a file that is read here"):
        formats.write_timeline(SimpleNamespace(video="shift.mp4"), Path("shift.mp4"))


def test_a_timeline_that_cannot_be_written_leaves_the_others_done(classifier, tmp_path, monkeypatch):
    def form(timeline):
        if "bad" in timeline.video:
            raise DataError(f"{timeline.video} shows no frame")
        return "{}"

    monkeypatch.setitem(formats.FORMS, ".json", form)
    with pytest.raises(DataError, match=r"1 of 2 videos were left out:\n.*bad.mp4 shows no frame"):
        segment(["run=any", "video=[bad.mp4, last.mp4]", "actions=[lift lid]", f"output={tmp_path}/*.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["last.json"]


def test_a_label_that_a_table_cannot_hold_is_named_before_a_video_is_read(classifier):
    with pytest.raises(LabelError, match=r"output=\*\.csv: the label 'stir' has no object .* and a row has both"):
        segment(["run=any", "video=a.mp4", "actions=[lift lid, stir]", "output=[*.json, *.csv]"])
    assert not classifier.asked


def test_the_videos_are_split_as_the_run_was(tmp_path):
    """By its test groups where they occur, and by its fold: what it trained on is no test, nor the other way round."""
    rows = [(name, group) for name in ("a", "b", "c", "d") for group in ("anna" if name < "c" else name,)]
    for name, _ in rows:
        (tmp_path / f"{name}.mp4").touch()
    table = tmp_path / "videos.csv"
    table.write_text(
        "video,start_s,end_s,verb,object,group\n" + "".join(f"{name}.mp4,0,1,lift,lid,{who}\n" for name, who in rows)
    )

    def names(source, split, fold=None, **settings):
        run = DatasetConfig(name="own", shards="", **{"kind": "csv", **settings})
        return [video.path.stem for video in read_videos(str(source), split, run, fold)]

    assert names(table, "train") == ["a", "b", "c", "d"]
    held = {"test_groups": ["c"], "left_out_groups": ["d"]}
    assert (names(table, "train", **held), names(table, "test", **held)) == (["a", "b"], ["c"])
    assert names(table, "train", test_groups=["of other videos"]) == ["a", "b", "c", "d"]
    with pytest.raises(DataError, match="no video of the test split .* dataset.test_groups of the run: as annotated"):
        names(table, "test")
    folder = tmp_path / "layout"
    write_videos(folder, TabletopConfig(size=16, fps=5.0), train=1, test=1)
    first, second = ("job-test-000", "job-train-000")
    (folder / "splits" / "test.split2.bundle").write_text(f"{second}.txt\n")
    (folder / "splits" / "train.split2.bundle").write_text(f"{first}.txt\n")
    assert names(folder, "test") == [first] and names(folder, "test", 2) == [second]
    of_run = DatasetConfig(name="own", kind="mstcn", shards="", fold=2)
    assert [video.path.stem for video in read_videos(str(folder), "test", of_run)] == [second]
    assert [video.path.stem for video in read_videos(str(folder), "train", of_run)] == [first]


def test_a_run_of_gtea_is_tested_on_gtea(tmp_path):
    """Its labels are those of the run's classes, its groups are people, and a person left out is in neither split."""
    root = write_gtea(tmp_path / "gtea", random_gtea(length=(3, 6)))
    run = load_config(["dataset=gtea", "dataset.fold=2", "dataset.left_out_groups=[S3]"]).dataset

    def people(split, fold=None):
        return {video.path.stem[:2] for video in read_videos(str(root), split, run, fold)}

    assert (people("test"), people("train")) == ({"S2"}, {"S1", "S4"})
    assert (people("test", 4), people("train", 4)) == ({"S4"}, {"S1", "S2"})
    labels = {label for video in read_videos(str(root), "test", run) for *_, label in video.spans}
    assert labels and all(label.endswith(" ingredient") for label in labels)


def test_annotations_are_read_as_those_of_the_run(tmp_path):
    """With its columns where a file has them, not ours; with its classes, and what it tolerates."""
    (tmp_path / "a.mp4").touch()
    (tmp_path / "own.csv").write_text("file,from,to,what,who\na.mp4,0,1,lift lid,anna\n")
    (tmp_path / "ours.csv").write_text("video,start_s,end_s,verb,object\na.mp4,0,1,lift,lid\n")
    columns = {"video": "file", "start_s": "from", "end_s": "to", "label": "what", "group": "who"}
    run = DatasetConfig(name="own", kind="csv", shards="", annotations=f"{tmp_path}/own.csv", columns=columns)
    for name in ("own.csv", "ours.csv"):
        (video,) = read_videos(f"{tmp_path}/{name}", "train", run)
        assert video.spans == ((0.0, 1.0, "lift lid"),)
    folder = tmp_path / "layout"
    write_videos(folder, TabletopConfig(size=16, fps=5.0), train=1, test=1)
    mapping = (folder / "mapping.txt").read_text().splitlines()[1:]
    actions = [line.partition(" ")[2] for line in mapping]
    classes = {"actions": {label: ["do", label.replace(" ", "-")] for label in actions}, "not_actions": ["background"]}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    run = DatasetConfig(name="own", kind="mstcn", shards="", classes=f"{tmp_path}/classes.json", allow_quarantine=True)
    (folder / "videos" / "job-train-000.mp4").unlink()
    (video,) = read_videos(str(folder), "test", run)
    assert {label.split()[0] for *_, label in video.spans} == {"do"}


def test_videos_without_a_step_are_tested_too(tmp_path, capsys):
    """What they are called is none of the labels; and what is left out is named."""
    folder = tmp_path / "layout"
    write_videos(folder, TabletopConfig(size=16, fps=5.0), train=1, test=1)
    truth = folder / "groundTruth" / "job-test-000.txt"
    truth.write_text("background\n" * len(truth.read_text().splitlines()))
    run = DatasetConfig(name="own", kind="mstcn", shards="")
    (video,) = read_videos(str(folder), "test", run)
    assert (video.path.stem, video.spans) == ("job-test-000", ())
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    rows = ("a.mp4,0,1,lift,lid,train", "a.mp4,1,2,lift,lid,test", "b.mp4,0,1,lift,lid,test")
    (tmp_path / "videos.csv").write_text("\n".join(["video,start_s,end_s,verb,object,split", *rows]))
    assert [video.path.stem for video in read_videos(f"{tmp_path}/videos.csv", "test", run)] == ["b"]
    assert re.search(r"left out, with segments of the training and of the test:\n.*a\.mp4", capsys.readouterr().out)
