"""Protects the annotation format: right files are read exactly, wrong ones are refused with line and remedy."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from data_worlds import numbered_frames, write_video

from ace_dist.config import DatasetConfig, load_config
from ace_dist.data.annotations.csv import COLUMNS, build_reader, clock_seconds, read_csv
from ace_dist.tools.annotations import write_annotations
from ace_dist.utils.errors import ConfigError, DataError, UserError

GOOD = {
    "video": "videos/a.mp4", "start_s": "0.5", "end_s": "1.5", "verb": "spin", "object": "block", "split": "train",
    "group": "p1",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", numbered_frames(24, 32, 48), rate=12)
    return tmp_path


def write(folder, *rows, columns=COLUMNS, encoding="utf-8"):
    path = folder / "labels.csv"
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_rows_become_segments_and_paths_count_from_the_file(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    rows = [GOOD, GOOD | {"start_s": "1", "end_s": "2", "verb": " pick  up ", "split": "test", "group": ""}]
    first, second = read_csv(write(folder, *rows)).segments()
    assert (first.start_s, first.end_s, first.verb, first.object, first.split, first.group) == (
        0.5, 1.5, "spin", "block", "train", "p1",
    )  # fmt: skip
    assert (second.verb, second.split, second.group) == ("pick up", "test", "")
    assert first.video == str(folder / "videos" / "a.mp4") and first.id != second.id
    assert first.origin.endswith("labels.csv line 2")
    raw = read_csv(folder / "labels.csv", fps=6.0, short_side=16).read(first, 0.5, 1.5)
    assert np.stack(list(raw.frames)).shape == (6, 16, 24, 3) and raw.fps == 6.0


def test_absolute_paths_other_columns_empty_lines_and_a_byte_order_mark_are_fine(folder):
    row = GOOD | {"video": str(folder / "videos" / "a.mp4"), "note": "x"}
    path = write(folder, row, columns=("note", *reversed(COLUMNS)), encoding="utf-8-sig")
    path.write_text(path.read_text(encoding="utf-8") + "\n,,,,,,,\n", encoding="utf-8")
    assert [segment.verb for segment in read_csv(path).segments()] == ["spin"]


def test_an_id_depends_on_its_own_row_only(folder):
    rows = [GOOD | {"start_s": str(i / 10), "end_s": "2"} for i in range(10)]
    ids = {segment.start_s: segment.id for segment in read_csv(write(folder, *rows)).segments()}
    assert len(set(ids.values())) == 10
    kept = [rows[i] for i in np.random.default_rng().permutation(10)[:4]]
    for segment in read_csv(write(folder, *kept)).segments():
        assert segment.id == ids[segment.start_s]


def test_a_clock_counts_hours_and_minutes():
    assert [clock_seconds(text) for text in ("1:02:03.5", "0:00:07", "10:59:59.25")] == [3723.5, 7.0, 39599.25]


@pytest.mark.parametrize(
    "change",
    [
        {"video": "./videos/../videos/a.mp4"},
        {"video": "ABSOLUTE"},
        {"start_s": "0.50", "end_s": "0:00:01.5"},
        {"verb": "Spin", "object": "BLOCK"},
    ],
)
def test_an_id_does_not_depend_on_how_a_row_says_it(change, folder, monkeypatch):
    """Another form of the path, of a time, of a label, and of the path of the file itself: the same clip."""
    (plain,) = read_csv(write(folder, GOOD)).segments()
    if change.get("video") == "ABSOLUTE":
        change = {"video": str(folder / "videos" / "a.mp4")}
    path = write(folder, GOOD | change)
    monkeypatch.chdir(folder)
    assert [read_csv(file).segments()[0].id for file in (path, Path(path.name))] == [plain.id, plain.id]


def test_the_list_that_own_writes_has_the_same_ids(folder):
    """Its rows name the same videos from another folder; another video of the same name is another clip."""
    whole = {"start_s": "0", "end_s": ""}
    path = write(folder, GOOD, GOOD | {"start_s": "0.70", "verb": "Pick_Up"}, GOOD | whole | {"split": "test"})
    before = [segment.id for segment in read_csv(path).segments()]
    write_annotations(DatasetConfig(name="own", kind="csv", shards="", annotations=str(path)), folder / "own" / "a.csv")
    assert [segment.id for segment in read_csv(folder / "own" / "a.csv").segments()] == before
    (folder / "videos" / "more").mkdir()
    (folder / "videos" / "more" / "a.mp4").write_bytes((folder / "videos" / "a.mp4").read_bytes())
    (other,) = read_csv(write(folder, GOOD | {"video": "videos/more/a.mp4"})).segments()
    assert other.id not in before


def test_ids_stay_when_a_list_and_its_videos_move_apart_behind_a_link(folder):
    """The link beside the list stands for the videos, wherever both lie: docs/own_videos.md."""
    (folder / "mnt").mkdir()
    (folder / "videos").rename(folder / "mnt" / "disk")
    (folder / "videos").symlink_to(folder / "mnt" / "disk")
    (before,) = read_csv(write(folder, GOOD)).segments()
    (folder / "mnt" / "disk").rename(folder / "archive")
    (folder / "home" / "line3").mkdir(parents=True)
    (folder / "home" / "line3" / "videos").symlink_to(folder / "archive")
    (after,) = read_csv((folder / "labels.csv").rename(folder / "home" / "line3" / "labels.csv")).segments()
    assert after.id == before.id and after.video != before.video


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": "b.mp4"}, r"line 3: video .*b\.mp4 does not exist"),
        ({"video": ""}, r"line 3: video is empty"),
        ({"start_s": "soon"}, r"line 3: start_s='soon' is not a number"),
        ({"end_s": "nan"}, r"line 3: end_s='nan' is not a number"),
        ({"end_s": "?"}, r"line 3: end_s='\?' is not a number"),
        ({"start_s": "-1"}, r"line 3: start_s=-1 is negative"),
        ({"start_s": "1.5"}, r"line 3: start_s=1\.5 is not before end_s=1\.5"),
        ({"start_s": "2"}, r"line 3: start_s=2 is not before end_s=1\.5"),
        ({"split": "valid"}, r"line 3: split='valid' is not one of train, test; write train.*evaluation\.validation_"),
        ({"split": "Training"}, r"line 3: split='Training' is not one of train, test; did you mean train\?"),
        ({"start_s": "0,7"}, r"line 3: start_s='0,7' is not a number of seconds; write decimals with a point"),
        ({"end_s": "0:00:01,5"}, r"line 3: end_s='0:00:01,5' is not a number of seconds; write decimals with a"),
        ({"end_s": "00:01"}, r"line 3: end_s='00:01' is not a number of seconds; write minutes as seconds, or as H:MM"),
        ({"video": "C:\\videos\\a.mp4"}, r"line 3: video .* does not exist; write it relative to the folder"),
        ({"video": "a" * 300 + ".mp4"}, r"line 3: video .* does not exist"),
        ({"verb": "put\nspin"}, r"line 4: has a line break in verb; is a double quote not closed"),
        ({"object": "--"}, r"line 3: the action 'spin' has no object; .*placeholder"),
        ({"verb": "  "}, r"line 3: verb is empty"),
        ({"object": ""}, r'line 3: object is empty; write a placeholder such as "item"'),
        ({"start_s": "0.50", "split": "test"}, r"line 3: repeats line 2: same video, times and action"),
    ],
)
def test_each_fault_is_named_with_its_line_and_the_setting(folder, change, message):
    with pytest.raises(DataError, match=message) as caught:
        read_csv(write(folder, GOOD, GOOD | {"start_s": "0.7"} | change))
    text = str(caught.value)
    assert "labels.csv" in text and "dataset.annotations" in text and isinstance(caught.value, UserError)


def test_a_spreadsheet_with_decimal_commas(folder):
    """Excel and LibreOffice write semicolons where a comma stands before decimals."""
    path = folder / "labels.csv"
    row = b"videos/a.mp4;0,25;0:00:01,5;spin;block M1,5\r\n"
    path.write_bytes(b"\xef\xbb\xbfvideo;start_s;end_s;verb;object\r\n" + row)
    (segment,) = read_csv(path).segments()
    assert (segment.start_s, segment.end_s, segment.object) == (0.25, 1.5, "block m1,5")


@pytest.mark.parametrize("line", ["{},", "0,{}", ",{},,"])
@pytest.mark.parametrize("columns", [None, dict(zip(COLUMNS, COLUMNS, strict=True))])
def test_columns_without_a_name_are_left_out(columns, line, folder):
    """Excel writes them behind the last one, pandas its index before the first."""
    path = write(folder, GOOD)
    header, row = path.read_text().splitlines()
    path.write_text(f"{line.format(header).replace('0,', ',')}\n{line.format(row)}\n")
    (segment,) = read_csv(path, columns=columns).segments()
    assert (segment.verb, segment.group) == ("spin", "p1")
    path.write_text(f"{line.format(header).replace('0,', ',')}\n{line.format(row)},more\n")
    with pytest.raises(DataError, match="more values than the header has columns \\('more' is left over\\)"):
        read_csv(path, columns=columns)


def test_two_labels_of_one_stretch_are_noted_and_one_label_twice_is_refused(folder):
    """Also where the file goes by two names."""
    (folder / "again.mp4").symlink_to("videos/a.mp4")
    other = GOOD | {"video": "again.mp4"}
    reader = read_csv(write(folder, GOOD, other | {"verb": "lift"}, GOOD | {"end_s": "2"}))
    (note,) = reader.notes
    assert "'spin block' (line 2) and 'lift block' (line 3)" in note and "line 4" not in note
    assert len(reader.segments()) == 3 and read_csv(write(folder, GOOD)).notes == []
    with pytest.raises(DataError, match="line 3: repeats line 2"):
        read_csv(write(folder, GOOD, other | {"split": "test"}))


def test_all_faults_come_in_one_message(folder):
    bad = [GOOD | {"start_s": "x"}, GOOD, GOOD | {"object": ""}, GOOD | {"split": "dev"}]
    with pytest.raises(DataError) as caught:
        read_csv(write(folder, *bad))
    assert [line in str(caught.value) for line in ("line 2", "line 3", "line 4", "line 5")] == [True, False, True, True]
    with pytest.raises(DataError, match=r"(?s)line 21.*\.\.\. and 30 more") as caught:
        read_csv(write(folder, *[GOOD | {"verb": ""}] * 50))
    assert "line 22" not in str(caught.value)


def test_a_file_that_is_no_annotation_file(folder):
    with pytest.raises(DataError, match=r"dataset\.annotations=.*absent\.csv does not exist"):
        read_csv(folder / "absent.csv")
    path = folder / "labels.csv"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"line 1: column video, start_s.* is missing; the header has nothing"):
        read_csv(path)
    path.write_text("a.mp4,0.4,2.0,lift,lid,train,anna\n")
    with pytest.raises(DataError, match=r"line 1: write video,start_s,.* as the first line; it has a\.mp4, 0\.4"):
        read_csv(path)
    path.write_text("video,start,end_s,verb,object,split,group\n")
    with pytest.raises(DataError, match=r"column start_s is missing; the header has video, start, end_s"):
        read_csv(path)
    for header, message in (
        ("video,start_s,end_s,verb,object,split,group,Verb", "the header has verb twice"),
        ("video,start,end_s,verb,object,split,group", "rename 'start' to start_s"),
        (f'{",".join(COLUMNS)}\nvideos/a.mp4,0,1,put,"screw,train,p\nvideos/a.mp4,1,2,put,nut,train,p', "not closed"),
        (f"{','.join(COLUMNS)}\nvideos/a.mp4,0,1,put,screw, big,train,p", "line 2: has more values .*'p' is left over"),
    ):
        path.write_text(header + "\n")
        with pytest.raises(DataError, match=message):
            read_csv(path)
    write(folder)
    with pytest.raises(DataError, match="has a header and no row"):
        read_csv(path)
    path.write_bytes((folder / "videos" / "a.mp4").read_bytes())
    with pytest.raises(DataError, match=r"not a CSV file in UTF-8|is missing"):
        read_csv(path)
    path.write_text(",".join(COLUMNS) + "\nvideos/a.mp4,0.5,1.5\n")
    with pytest.raises(DataError, match="line 2: has no value for verb, object, split, group"):
        read_csv(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header", [COLUMNS, [c.upper() for c in COLUMNS], [f" {c.title().replace('_', ' ')}" for c in COLUMNS]]
)
def test_spreadsheets_of_any_country_and_paths_of_windows(folder, delimiter, header):
    """Semicolons and tabs, a header in capitals, backslashes and `Train` are what people have."""
    row = ["videos\\a.mp4", "0.5", "1.5", "put", "screw, big" if delimiter != "," else "screw", "Train", "p1"]
    path = folder / "labels.csv"
    path.write_text("\r\n".join(delimiter.join(cells) for cells in (header, row)) + "\r\n")
    (segment,) = read_csv(path).segments()
    assert segment.video == str(folder / "videos" / "a.mp4") and segment.split == "train"
    assert (segment.start_s, segment.end_s, segment.verb, segment.object, segment.group) == (
        0.5,
        1.5,
        "put",
        row[4],
        "p1",
    )


def test_a_row_costs_itself_alone_where_quarantine_is_allowed(folder):
    """Rows in = segments + ledger."""
    path = write(folder, GOOD, GOOD | {"object": "-"}, GOOD | {"split": "val"}, GOOD | {"start_s": "0.6"})
    path.write_text(path.read_text() + "videos/a.mp4,0.7,1.5,put,screw, big,train,p1\n")
    reader = read_csv(path, keep_faults=True)
    assert len(reader.segments()) == 2 and [entry.id for entry in reader.rejected] == ["line-3", "line-4", "line-6"]


ASSEMBLY101 = (  # the published layout of its fine-grained actions; frames count 30 a second
    "id,video,start_frame,end_frame,action_id,verb_id,noun_id,action_cls,verb_cls,noun_cls,toy_id,toy_name,is_shared,is_RGB\n"
    "0,videos/a.mp4,15,45,1,2,3,pick up cabin,pick up,cabin,a08,excavator,0,1\n"
)
EPIC = (  # EPIC-KITCHENS-100
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
    "P01_01_0,P01,a,00:00:01.089,00:00:00.14,00:00:01.37,8,202,open door,open,3,door,3,['door'],[3]\n"
)
EPIC_COLUMNS = {
    "video": "videos/{video_id}.mp4", "start_s": "start_timestamp", "end_s": "stop_timestamp", "verb": "verb",
    "object": "noun", "group": "participant_id",
}  # fmt: skip
ASSEMBLY101_COLUMNS = {
    "video": "video", "start_frame": "start_frame", "end_frame": "end_frame", "fps": "30", "verb": "verb_cls",
    "object": "noun_cls", "group": "toy_id",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        (
            ASSEMBLY101,
            "{video: video, start_frame: start_frame, end_frame: end_frame, fps: 30, verb: verb_cls, object: noun_cls}",
            (0.5, 1.5, "pick up", "cabin", ""),
        ),
        (
            EPIC,
            '{video: "videos/{video_id}.mp4", group: participant_id, start_s: start_timestamp, end_s: stop_timestamp, '
            "verb: verb, object: noun}",
            (0.14, 1.37, "open", "door", "P01"),
        ),
        (
            "file;start;end;action\nvideos/a.mp4;0,5;1,5;Screw in the pin\n",
            "{video: file, start_s: start, end_s: end, label: action}",
            (0.5, 1.5, "screw in", "the pin", ""),
        ),
    ],
)
def test_a_column_map_reads_the_tables_of_published_data_sets(text, columns, expected, folder):
    (folder / "labels.csv").write_text(text)
    settings = ["dataset=csv", f"dataset.annotations={folder / 'labels.csv'}", f"dataset.columns={columns}"]
    (segment,) = build_reader(load_config(settings).dataset).segments()
    assert (segment.start_s, segment.end_s, segment.verb, segment.object, segment.group) == expected
    assert segment.video == str(folder / "videos" / "a.mp4") and segment.split == "train"
    with pytest.raises(ConfigError, match=r"dataset\.columns is of CSV files"):
        load_config(["dataset=gtea", f"dataset.columns={columns}"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"verbs": "verb"}, ConfigError, r"verbs is not one of video.*did you mean .verb.\?"),
        ({"verb": None}, ConfigError, "has no verb"),
        ({"label": "narration"}, ConfigError, "has label beside verb"),
        ({"label": "all_nouns", "verb": None, "object": None}, DataError, "line 2: .*'door'"),
        ({"start_frame": "start_frame"}, ConfigError, "has start_s and start_frame"),
        ({"start_s": None, "start_frame": "start_frame"}, ConfigError, "need fps"),
        ({"fps": "30"}, ConfigError, "need fps"),
        ({"verb": "verb_name"}, DataError, "line 1: column verb_name is missing"),
        ({"video": "{video_id}.avi"}, DataError, r"line 2: video .*a\.avi does not exist"),
        ({"start_s": None, "start_frame": "noun", "fps": "30"}, DataError, "line 2: noun='door' is not the number"),
        ({"start_s": None, "start_frame": "start_frame", "fps": "noun"}, DataError, "line 2: fps='door' is not a num"),
        ({"start_s": "narration"}, DataError, "line 2: start_s='open door' is not a number of seconds"),
    ],
)
def test_a_column_map_that_does_not_fit_is_refused(change, error, message, folder):
    (folder / "labels.csv").write_text(EPIC)
    columns = {name: value for name, value in (EPIC_COLUMNS | change).items() if value}
    with pytest.raises(error, match=message):
        read_csv(folder / "labels.csv", columns=columns)


@pytest.mark.parametrize(
    ("header", "named"), [("video,start,end,Label", "Label"), ("file;start_s;end_s;action", "action")]
)
def test_one_column_of_labels_comes_with_the_setting_that_reads_it(header, named, folder):
    """Lists of actions often have one column for all of it; `{label: NAME}` splits it as an export's label is."""
    (folder / "labels.csv").write_text(f"{header}\n")
    with pytest.raises(DataError, match=rf"verb.* is missing.*dataset\.columns='.*label: {named}}}'"):
        read_csv(folder / "labels.csv")


def test_a_row_of_a_mapped_table_costs_itself_alone_where_quarantine_is_allowed(folder):
    (folder / "labels.csv").write_text(f"{ASSEMBLY101}1,videos/a.mp4,60\n2,videos/b.mp4,0,9,1,2,3,x,put,cabin,,,,\n")
    reader = read_csv(folder / "labels.csv", columns=ASSEMBLY101_COLUMNS, keep_faults=True)
    assert len(reader.segments()) == 1 and [entry.video for entry in reader.rejected] == [
        "videos/a.mp4",
        "videos/b.mp4",
    ]
    with pytest.raises(ConfigError, match=r"dataset\.columns is of CSV files"):
        read_csv(folder, columns=ASSEMBLY101_COLUMNS)
