"""Annotations of any kind become one checked CSV file; its split is the written one, the chosen one or a proposal."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from ace_dist.concepts import Action
from ace_dist.config import load_config
from ace_dist.data.annotations.csv import read_csv
from ace_dist.tools.annotations import propose_test_groups, write_annotations
from ace_dist.tools.own import OwnSettings, length_words, named_first, stages, training_words
from ace_dist.utils.errors import LabelError, UserError

ACTIONS = (("push", "lever"), ("lift", "lid"), ("spin", "wheel"))
HEADER = "video,start_s,end_s,verb,object,group\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with two empty files for each of four people; annotations open no video."""
    monkeypatch.chdir(tmp_path)
    for person in "abcd":
        for take in "12":
            (tmp_path / f"{person}{take}.mp4").touch()
    return tmp_path


def rows(people="abcd", actions=ACTIONS, group="{person}"):
    """A CSV without a split: every action twice for each person."""
    return HEADER + "".join(
        f"{person}{take}.mp4,{k},{k + 1},{verb},{thing},{group.format(person=person)}\n"
        for person in people
        for take in "12"
        for k, (verb, thing) in enumerate(actions)
    )


def write(folder, text, *settings):
    """The segments of the CSV file that comes out, and what is said."""
    (folder / "a.csv").write_text(text)
    config = load_config(["dataset=csv", "dataset.annotations=a.csv", *settings])
    said = write_annotations(config.dataset, folder / "out" / "a.csv")
    return read_csv(folder / "out" / "a.csv").segments(), "\n".join(said)


def test_videos_of_one_name_in_several_folders_are_several_groups(folder):
    for person in "ab":
        (folder / person).mkdir()
        (folder / person / "take.mp4").touch()
    lines = [f"{video},{k},{k + 1},{verb},{thing},\n" for video in ("a/take.mp4", "b/take.mp4", "c1.mp4")
             for k, (verb, thing) in enumerate(ACTIONS)]  # fmt: skip
    segments, _ = write(folder, HEADER + "".join(lines))
    assert {segment.group for segment in segments} == {"a/take.mp4", "b/take.mp4", "c1"}


def test_a_relative_and_an_absolute_path_of_one_name_are_two_groups(folder):
    (folder / "b").mkdir()
    (folder / "b" / "a1.mp4").touch()
    lines = [f"{video},{k},{k + 1},{verb},{thing},\n" for video in ("a1.mp4", folder / "b" / "a1.mp4")
             for k, (verb, thing) in enumerate(ACTIONS)]  # fmt: skip
    segments, _ = write(folder, HEADER + "".join(lines))
    assert {segment.group for segment in segments} == {"a1.mp4", "b/a1.mp4"}


@pytest.mark.parametrize("link", ["of the output", "in a row"])
def test_a_path_over_a_link_names_the_same_video(link, folder):
    """The system follows a link before it goes up by `..`, which nobody sees in the text of the path."""
    (folder / "disk" / "deep").mkdir(parents=True)
    name = "out" if link == "of the output" else "videos"
    (folder / name).symlink_to(folder / "disk" / "deep")
    (folder / "disk" / "a1.mp4").touch()  # beside the target of the link; another a1.mp4 lies beside the link
    text = rows() if link == "of the output" else rows().replace("a1.mp4", "videos/../a1.mp4")
    segments, _ = write(folder, text)
    expected = folder / "a1.mp4" if link == "of the output" else folder / "disk" / "a1.mp4"
    found = {str(Path(segment.video).resolve()) for segment in segments if segment.group == "a"}
    assert found == {str(expected), str(folder / "a2.mp4")}
    assert [s.id for s in segments] == [s.id for s in read_csv(folder / "a.csv").segments()]


def test_videos_within_tar_files_cannot_be_listed(folder):
    with tarfile.open(folder / "train.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"))
        info = tarfile.TarInfo("a.json")
        text = json.dumps({"verb": "lift", "object": "lid"}).encode()
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    config = load_config(["dataset=webdataset", "dataset.root=."])
    with pytest.raises(UserError, match="dataset.kind=webdataset has no video file for a-.*: build its shards dir"):
        write_annotations(config.dataset, folder / "out.csv")


def test_a_group_in_both_splits_is_noted(folder):
    lines = rows().replace("\n", ",train\n").replace("group,train", "group,split").splitlines(keepends=True)
    lines[-1] = lines[-1].replace("train", "test")
    _, said = write(folder, "".join(lines))
    assert "note: groups in both splits, so that the test is not of unknown ones: d" in said


def test_a_split_is_proposed_by_group_and_is_the_same_each_time(folder):
    segments, said = write(folder, rows())
    splits = {segment.group: segment.split for segment in segments}
    assert len(segments) == 24 and Counter(splits.values()) == {"train": 3, "test": 1}
    assert all(splits[segment.group] == segment.split for segment in segments), "no group is cut"
    assert "1 of 4 groups are tested" in said and "dataset.test_groups='[NAME, ...]'" in said
    before = (folder / "out" / "a.csv").read_bytes()
    assert write(folder, rows())[0] == segments and (folder / "out" / "a.csv").read_bytes() == before
    with pytest.raises(UserError, match="holds other rows than a.csv gives now"):
        write(folder, rows("abc"))


def test_the_chosen_split_and_the_written_one_stand(folder):
    segments, _ = write(folder, rows(), "dataset.test_groups=[c, d]")
    assert {segment.group for segment in segments if segment.split == "test"} == {"c", "d"}
    (folder / "out" / "a.csv").rename(folder / "written.csv")
    text = rows().replace("group", "group,split").replace(",b\n", ",b,test\n")
    segments, said = write(
        folder, "".join(f"{line},train\n" if line[-1] in "acd" else f"{line}\n" for line in text.splitlines())
    )
    assert {segment.group for segment in segments if segment.split == "test"} == {"b"}
    assert "as the annotations have it" in said


def test_without_groups_a_video_is_one(folder):
    segments, said = write(folder, rows(group=""))
    assert {segment.group for segment in segments} == {f"{person}{take}" for person in "abcd" for take in "12"}
    assert "2 of 8 groups are tested" in said


def test_a_folder_per_label(folder):
    for label, clips in {
        "lift_lid": ("x.mp4", "anna/y.mp4", ".hidden", ".checkpoints/x.mp4"),
        "push lever": ("z.avi", "anna/w.mp4"),
        ".Trashes": ("x.mp4",),
    }.items():
        for clip in clips:
            path = folder / "clips" / label / clip
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (folder / "clips" / "push lever" / "anna").rename(folder / "disk")
    (folder / "clips" / "push lever" / "anna").symlink_to(folder / "disk")
    segments = read_csv(folder / "clips").segments()
    assert [(f"{s.verb} {s.object}", s.group, s.split) for s in segments] == [
        ("lift lid", "anna", "train"), ("lift lid", "x", "train"),
        ("push lever", "anna", "train"), ("push lever", "z", "train"),
    ]  # fmt: skip
    (folder / "clips" / "lift").mkdir()
    (folder / "clips" / "lift" / "v.mp4").touch()
    with pytest.raises(UserError, match="folder 'lift': .* has no object"):
        read_csv(folder / "clips")
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="neither a CSV file nor videos in a folder per label"):
        read_csv(folder / "empty")


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (rows("a"), (), "all 6 segments are of one group, 'a'"),
        (rows(actions=ACTIONS[:1]), (), "all 8 segments show 'push lever', and a classifier needs two"),
        (rows(), ("dataset.test_groups=[anna]",), "dataset.test_groups lists 'anna'"),
        (rows(), ("dataset.test_groups=[a, b, c, d]",), "0 base actions with training clips"),
        (rows("a", ACTIONS[:1]) + rows("b", ACTIONS[1:2])[len(HEADER) :], (), "each of the 2 groups is the only one"),
        (rows().replace("group", "groop"), (), "rename 'groop' to group"),
        (rows().replace("c1.mp4,0", "c9.mp4,0"), (), "line 14: video .*c9.mp4 does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(text, settings, message, folder):
    with pytest.raises(UserError, match=message):
        write(folder, text, *settings)
    assert not (folder / "out").exists()


def test_what_is_left_out_is_listed(folder):
    segments, said = write(folder, rows() + "a1.mp4,9,8,lift,lid,a\n", "dataset.allow_quarantine=true")
    (entry,) = (json.loads(line) for line in (folder / "out" / "a.quarantine.jsonl").read_text().splitlines())
    assert len(segments) == 24 and "1 segments left out" in said and "is not before" in entry["reason"]


def test_a_proposal_takes_no_action_from_the_training_where_it_can():
    """An action that one group alone shows keeps that group in the training; else the group with the fewest goes."""
    lift, push, spin = (Action(verb, "item") for verb in ("lift", "push", "spin"))
    groups = {name: Counter({lift: 2, push: 2}) for name in "abcdefgh"}
    for only in groups:
        assert only not in propose_test_groups(groups | {only: Counter({lift: 1, push: 1, spin: 1})})
    alone = {"a": Counter({lift: 2, push: 1}), "b": Counter({lift: 1, spin: 1}), "c": Counter({push: 1, lift: 3})}
    assert propose_test_groups(alone) == {"a"}
    assert propose_test_groups({"a": Counter({lift: 2, push: 1}), "b": Counter({spin: 1})}) == {"b"}


def test_settings_of_the_user_win_and_kept_trees_stay(folder, capsys):
    """The commands with another run folder; a tree file that is there is not built again."""
    assert named_first(["a.csv", "x=1"]) == ["annotations=a.csv", "x=1"] and named_first(["x=1"]) == ["x=1"]
    (folder / "trees.json").write_text("{}")
    own = OwnSettings("a.csv")
    settings = ["run=elsewhere", "dataset.synonyms=trees.json", "dataset.novel=[lift lid]", "training.epochs=3"]
    config = load_config(training_words(own, settings))
    commands = list(stages(own, settings, config, ["ranks=1"]))
    assert [words[0] for words in commands] == ["annotations", "shards", "train", "train"]
    assert commands[0] == [
        "annotations", "dataset=csv", "dataset.annotations=a.csv", "dataset.novel=[lift lid]",
        "output=own/annotations.csv",
    ]  # fmt: skip
    assert [("dataset.tasks=1" in words) for words in commands] == [False, True, False, False], "one part in an array"
    assert [word for word in commands[-1] if "epochs" in word] == ["training.epochs=3"], "the length that was asked for"
    assert commands[-1].count("run=elsewhere") == 1 and "run=own/run" not in commands[-1]
    assert "trees.json is there and is kept" in capsys.readouterr().out


def test_columns_of_the_file_are_not_asked_of_the_checked_one(folder):
    """`own/annotations.csv` has our columns, and its split would be lost by a map that names none."""
    (folder / "trees.json").write_text("{}")
    own, columns = OwnSettings("a.csv"), "dataset.columns={video: file, start_s: from, end_s: to, label: action}"
    settings = [columns, "dataset.synonyms=trees.json", "training.epochs=3"]
    first, *others = stages(own, settings, load_config(training_words(own, settings)), [])
    assert columns in first and not [word for words in others for word in words if "columns" in word]


@pytest.mark.parametrize(
    ("clips", "settings", "words"),
    [
        (18, [], ["training.epochs=178"]),  # 200 * 16 / 18 = 177.8
        (18, ["training.batch_size=4"], ["training.epochs=45"]),  # 200 * 4 / 18 = 44.4
        (18, ["training.epochs=2"], []),
        (18, ["training.max_steps=2"], []),
        (18, ["experiment=demo"], []),
        (300, [], []),  # 15 epochs are 281 steps
        (0, [], []),
    ],
)
def test_few_clips_train_for_as_many_epochs_as_make_200_steps(clips, settings, words, folder, monkeypatch):
    own = OwnSettings("a.csv")
    task = SimpleNamespace(training_clips=lambda: ([None] * clips, [0] * clips))
    monkeypatch.setattr("ace_dist.tools.own.load_task", lambda config: task)
    assert length_words(load_config(training_words(own, settings)), settings) == words


def test_the_search_for_the_size_of_the_trees_is_silent(folder, capsys):
    """It builds trees that nobody keeps: their progress would stand before the build's own, and look like a second."""
    write(folder, rows())
    capsys.readouterr()
    own, settings = OwnSettings("a.csv", "out"), ["dataset.annotations=out/a.csv"]
    commands = stages(own, settings, load_config(training_words(own, settings)), [])
    assert next(commands)[0] == "annotations" and next(commands)[:2] == ["synonyms", "build"]
    assert capsys.readouterr() == ("", "")


def test_a_verb_without_synonyms_is_named_before_anything_is_cut(folder):
    write(folder, rows(actions=(("frobnicate", "lid"), ("lift", "lid"))))
    own = OwnSettings("a.csv", "out")
    settings = ["dataset.annotations=out/a.csv"]
    commands = stages(own, settings, load_config(training_words(own, settings)), [])
    next(commands)
    with pytest.raises(LabelError, match="frobnicate") as refused:
        next(commands)
    assert "out/trees.json yourself" in str(refused.value) and "\n" not in str(refused.value)
