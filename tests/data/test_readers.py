"""Protects the way from the paper's data sets, in their own layouts, to segments: frames, views, folds and refusals."""

from __future__ import annotations

import pickle
import random
import shutil
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from data_worlds import frame_number, numbered_frames, read_frames, write_video
from paper_data import GTEA_VERBS, random_gtea, write_ata, write_gtea, write_ikea, write_numbered, write_segments

from ace_dist.concepts import load_class_table
from ace_dist.config import assets_dir, load_config
from ace_dist.data.annotations.ata_release import ConvertConfig, convert
from ace_dist.data.annotations.frames import video_clock
from ace_dist.data.annotations.ikea import environment, held_frames
from ace_dist.data.datasets import build_dataset, build_reader, load_shards
from ace_dist.utils.errors import DataError

REAL = Path(__file__).resolve().parents[3] / "shared" / "annotations" / "gtea"


def reader_of(*settings):
    return build_reader(load_config(list(settings)).dataset)


def gtea(root, *settings):
    return reader_of("dataset=gtea", "dataset.encoding.fps=null", f"dataset.root={root}", *settings)


def painted(segments, counts, rate):
    """Frame-wise verbs again, out of segments in seconds: {video stem: [verb or 'background', ...]}."""
    frames = {name: ["background"] * count for name, count in counts.items()}
    for segment in segments:
        first, end = round(segment.start_s * rate), round(segment.end_s * rate)
        lines = frames[Path(segment.video).stem]
        assert set(lines[first:end]) == {"background"}, "segments of one video do not overlap"
        lines[first:end] = [segment.verb] * (end - first)
    return frames


# --------------------------------------------------------------------------------------------------------------- GTEA
def test_every_real_gtea_frame(tmp_path):
    """28 videos, 31,225 frames, 527 segments (the count of others): no frame of the release changes its label."""
    if not REAL.is_dir():
        pytest.skip(f"the real labels are not at {REAL}; a synthetic copy in their format is tested below")
    labels = {path.stem: path.read_text().split() for path in (REAL / "groundTruth").glob("*.txt")}
    assert (len(labels), sum(map(len, labels.values()))) == (28, 31225)
    write_gtea(tmp_path, labels)
    for name in ("splits", "groundTruth"):
        shutil.rmtree(tmp_path / name)
        shutil.copytree(REAL / name, tmp_path / name)
    reader = gtea(tmp_path)
    segments = reader.segments()
    assert painted(segments, {name: len(lines) for name, lines in labels.items()}, 15) == labels
    assert Counter(segment.verb for segment in segments) == {
        "take": 141, "put": 90, "open": 76, "pour": 71, "close": 67, "scoop": 45, "spread": 15, "stir": 14, "fold": 4,
        "shake": 4,
    }  # fmt: skip
    assert {segment.object for segment in segments} == {"ingredient"} and not reader.notes
    assert Counter(s.group for s in segments).keys() == {"S1", "S2", "S3", "S4"}
    assert min(round((s.end_s - s.start_s) * 15) for s in segments) == 5
    shown = random.sample(segments, 5)
    for segment in shown:
        frames = reader.read(segment, segment.start_s, segment.end_s).frames
        first, end = round(segment.start_s * 15), round(segment.end_s * 15)
        assert [frame_number(frame) for frame in frames] == [k % 256 for k in range(first, end)]


@pytest.mark.parametrize(("rate", "folder"), [(15, "videos"), (30, "Videos"), (12.5, "")])
def test_gtea_frames_become_seconds_by_the_containers_rate(tmp_path, rate, folder):
    """The same labels on videos of other rates: same frames, other seconds; runs of one label are one segment."""
    labels = random_gtea(seed=None)
    labels["S1_Cheese_C1"] += ["take", "take", "background"]  # perhaps after a "take", then it is the same run
    reader = gtea(write_gtea(tmp_path, labels, videos=folder, rate=rate))
    segments = pickle.loads(pickle.dumps(reader)).segments()
    assert painted(segments, {name: len(lines) for name, lines in labels.items()}, rate) == labels
    assert {(s.group, s.split) for s in segments} == {("S1", "test"), ("S2", "train"), ("S3", "train"), ("S4", "train")}
    segment = random.choice(segments)
    first, end = round(segment.start_s * rate), round(segment.end_s * rate)
    frames = reader.read(segment, segment.start_s, segment.end_s).frames
    assert [frame_number(frame) for frame in frames] == [k % 256 for k in range(first, end)]
    name = Path(segment.video).stem
    assert segment.origin.endswith(f"{name}.txt line {first + 1}")


@pytest.fixture
def gtea_root(tmp_path):
    return write_gtea(tmp_path / "gtea", random_gtea(length=(3, 6)))


def damage(root, how):
    name = root / "groundTruth" / "S2_Cheese_C1.txt"
    match how:
        case "no labels":
            shutil.rmtree(root / "groundTruth")
        case "no bundle":
            (root / "splits" / "test.split3.bundle").unlink()
        case "unpacked in part":
            name.unlink()
        case "wrong fold":
            (root / "splits" / "test.split1.bundle").write_text("S1_Cheese_C1.txt\nS2_Cheese_C1.txt\n")
        case "stray file":
            (root / "groundTruth" / "P03_cereals.txt").write_text("take\n")
        case "no video":
            (root / "videos" / "S2_Cheese_C1.mp4").unlink()
        case "two videos":
            shutil.copy(root / "videos" / "S2_Cheese_C1.mp4", root / "S2_Cheese_C1.avi")
        case "unknown label":
            name.write_text(name.read_text().replace("pour", "poor"))
        case "other rate":
            write_numbered(root / "videos" / "S2_Cheese_C1.mp4", 2 * len(name.read_text().split()), 30)
        case "no video file":
            (root / "videos" / "S2_Cheese_C1.mp4").write_text("hello")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no labels", "is not GTEA: .*groundTruth does not exist .*github.com/yabufarha/ms-tcn.*cbs.ic.gatech.edu"),
        ("no bundle", r"test\.split3\.bundle does not exist"),
        ("unpacked in part", r"(?s)test\.split2\.bundle lists S2_Cheese_C1, groundTruth/ has no such file"),
        ("wrong fold", r"(?s)test\.split1\.bundle lists S2_Cheese_C1, which is not of subject 1"),
        ("stray file", "(?s)not named like S1_Cheese_C1.txt:.*P03_cereals"),
        ("no video", r"(?s)1 of 4 annotated videos cannot be used:.*videos/S2_Cheese_C1\.mp4: does not exist"),
        ("two videos", r"two videos for S2_Cheese_C1: .*mp4, .*avi; keep one"),
        ("unknown label", r"(?s)S2_Cheese_C1\.txt line \d+: label 'poor' is not in .*gtea\.json; nearest: 'pour'"),
        (
            "other rate",
            r"(?s)S2_Cheese_C1\.mp4: has \d+ frames at 30 frames per second, its annotation \d+",
        ),
        ("no video file", r"S2_Cheese_C1\.mp4 cannot be read as a video"),
    ],
)
def test_a_gtea_folder_that_is_not_as_expected(gtea_root, how, words):
    """Each message names the file and what to do; most name where to get the data set."""
    damage(gtea_root, how)
    with pytest.raises(DataError, match=words):
        gtea(gtea_root)


def test_gtea_settings(gtea_root):
    """The root is asked for, a folder too high is recognised, folds outside 1 to 4 name the groups."""
    with pytest.raises(DataError, match=r"dataset=gtea needs dataset\.root=FOLDER: expected groundTruth"):
        reader_of("dataset=gtea")
    with pytest.raises(DataError, match=r"did you mean dataset\.root=.*/gtea\?"):
        gtea(gtea_root.parent)
    with pytest.raises(DataError, match="is not a folder"):
        gtea(gtea_root / "nowhere")
    with pytest.raises(DataError, match=r"dataset\.views=\['front'\] has no meaning for dataset\.kind=gtea"):
        gtea(gtea_root, "dataset.views=[front]")
    config = load_config(["dataset=gtea", f"dataset.root={gtea_root}", "dataset.fold=5"]).dataset
    with pytest.raises(DataError, match=r"test_groups lists 'S5' \(dataset\.fold=5\); there are S1, S2, S3, S4"):
        build_dataset(config, progress=False)


def test_the_tolerance_is_a_setting(gtea_root):
    """A video 10 frames longer than its labels passes at the default second and not at half of one."""
    name = gtea_root / "groundTruth" / "S3_Cheese_C1.txt"
    count = len(name.read_text().split())
    write_numbered(gtea_root / "videos" / "S3_Cheese_C1.mp4", count + 10, 15)
    assert gtea(gtea_root).segments()
    with pytest.raises(DataError, match=f"has {count + 10} frames at 15 frames per second, its annotation {count}"):
        gtea(gtea_root, "dataset.frame_tolerance_s=0.5")


# ---------------------------------------------------------------------------------------------------- builds and folds
def test_one_build_serves_every_fold(gtea_root, tmp_path, capsys):
    """Leave-one-subject-out over one shard folder: fold k tests subject k and trains on the other three."""

    def settings(fold, *more):
        return load_config(
            ["dataset=gtea", f"dataset.root={gtea_root}", f"dataset.shards={tmp_path / 'shards'}",
             "dataset.encoding.codec=mjpeg", "dataset.encoding.quality=4", "dataset.workers=1",
             f"dataset.fold={fold}", *more]
        ).dataset  # fmt: skip

    built = build_dataset(settings(1), progress=True)
    assert "tested: S1" in capsys.readouterr().out
    stamp = (tmp_path / "shards" / "manifest.json").stat().st_mtime_ns
    for fold in range(1, 5):
        for shards in (load_shards(settings(fold)), build_dataset(settings(fold), progress=False)):
            assert {record.group for record in shards.split("test")} == {f"S{fold}"}
            assert len(shards.split("test")) == 10 and len(shards.split("train")) == 30
            assert {record.key for record in shards.records} == {record.key for record in built.records}
    assert (tmp_path / "shards" / "manifest.json").stat().st_mtime_ns == stamp, "nothing was built again"
    shards = load_shards(settings(2, "dataset.left_out_groups=[S4]"))
    assert {record.group for record in shards.split("train")} == {"S1", "S3"} and len(shards.split("test")) == 10
    with pytest.raises(DataError, match="test_groups and dataset.left_out_groups both list S2"):
        load_shards(settings(2, "dataset.left_out_groups=[S2]"))
    assert Counter(record.verb for record in shards.split("test")) == dict.fromkeys(GTEA_VERBS, 1)


def test_a_csv_can_be_split_by_group_too(gtea_root, tmp_path):
    """dataset.test_groups overrides the split column, as leave-one-person-out on own videos needs."""
    rows = ["video,start_s,end_s,verb,object,split,group"]
    for person in range(1, 4):
        rows.append(f"videos/S{person}_Cheese_C1.mp4,0.1,1.5,lift,lid,train,p{person}")
    (gtea_root / "own.csv").write_text("\n".join(rows) + "\n")
    config = load_config(
        ["experiment=own", f"dataset.annotations={gtea_root / 'own.csv'}", f"dataset.shards={tmp_path / 'own'}",
         "dataset.workers=1", "dataset.test_groups=[p2]"]
    ).dataset  # fmt: skip
    assert [record.group for record in build_dataset(config, progress=False).split("test")] == ["p2"]


# ----------------------------------------------------------------------------------------------------------- IKEA-ASM
BENCH = "Lack_TV_Bench/0025_black_table_04_02_2019_08_20_13_48"  # calibration 04: environment 2
COFFEE = "Lack_Coffee_Table/0044_oak_floor_10_04_2019_08_28_15_19"  # calibration 10: environment 5
TRIAL = "Lack_TV_Bench/special_test_1"
ROWS = [
    (5, 20, "pick up ...", "leg"),
    (20, 41, "spin leg", ""),
    (30, 44, "lay down ...", "table top"),  # overlaps its predecessor
    (50, 95, "slide bottom of drawer", ""),  # ends past the shortest view
    (92, 99, "push ...", "table"),  # begins past it
    (60, 70, "other", ""),
    (48, 48, "spin leg", ""),
    (49, None, "spin leg", ""),
    (70, 80, "sit on ...", "table"),  # a label with too few examples to be a class
]


def ikea_scans():
    """Two scans of three views that differ in length and rate, a trial, and a view that is not annotated."""
    return {
        BENCH: {
            "dev1": (93, 92, 25, ROWS, "multi_view"),
            "dev2": (92, 91, 25, ROWS, "multi_view"),
            "dev3": (90, 90, 25, ROWS, "top_view"),
        },
        COFFEE: {
            "dev1": (60, 60, 24, [(0, 30, "push ...", "table top")], "multi_view"),
            "dev2": (0, 60, 24, None, "multi_view"),
            "dev3": (62, 61, 24, [(0, 30, "push ...", "table top")], "top_view"),
        },
        TRIAL: {"dev3": (0, 50, 25, ROWS, "top_view")},
    }


@pytest.fixture(scope="module")
def ikea_root(tmp_path_factory):
    return write_ikea(tmp_path_factory.mktemp("ikea"), ikea_scans())


def ikea(root, *settings):
    return reader_of("dataset=ikea", "dataset.encoding.fps=null", f"dataset.root={root}", *settings)


def stretches(segments, rate):
    return {
        (Path(s.video).parts[-3], round(s.start_s * rate, 6), round(s.end_s * rate, 6), s.verb, s.object)
        for s in segments
    }


def test_ikea_segments_of_the_database(ikea_root):
    """Labels are completed by their object, clamped to the shortest view, in the paper's words; one set a view."""
    reader = ikea(ikea_root)
    bench = [s for s in reader.segments() if "TV_Bench" in s.video]
    assert stretches(bench, 25) == {
        (device, first, end, verb, target)
        for device in ("dev1", "dev2", "dev3")
        for first, end, verb, target in [
            (5, 20, "pick up", "leg"),
            (20, 41, "spin", "leg"),
            (30, 44, "lay down", "table top"),
            (50, 90, "slide", "bottom panel"),
        ]
    }
    coffee = [s for s in reader.segments() if "Coffee" in s.video]
    assert stretches(coffee, 24) == {(device, 0, 30, "push", "table top") for device in ("dev1", "dev3")}
    assert {(s.group, s.split) for s in bench} == {("env2", "test")}
    assert {(s.group, s.split) for s in coffee} == {("env5", "train")}
    assert reader.notes == (
        "3 segments left out: labels past the end of their video",
        "6 segments left out: labels without a frame",
        "3 segments left out: sit on table",
    )
    segment = next(s for s in bench if s.verb == "spin" and "dev1" in s.video)
    frames = reader.read(segment, segment.start_s, segment.end_s).frames
    assert [frame_number(frame) for frame in frames] == list(range(20, 41))


def test_ikea_views_are_chosen_and_asked_for(ikea_root, tmp_path):
    """The top view alone is a setting, or all that is there; a missing file costs itself, and is named."""
    top = ikea(ikea_root, "dataset.views=[dev3]").segments()
    assert {Path(s.video).parts[-3] for s in top} == {"dev3"} and len(top) == 5
    with pytest.raises(DataError, match="dataset.views lists 'dev4'; IKEA-ASM has dev1, dev2, dev3"):
        ikea(ikea_root, "dataset.views=[dev4]")
    scans = ikea_scans()
    scans[BENCH]["dev2"] = (0, *scans[BENCH]["dev2"][1:])
    write_ikea(tmp_path, scans)
    with pytest.raises(DataError, match=rf"(?s)1 of 5 annotated videos .*{BENCH}/dev2/images/scan_video.avi: does not"):
        ikea(tmp_path, "dataset.views=[dev1,dev2,dev3]", "dataset.allow_quarantine=false")
    assert len(ikea(tmp_path, "dataset.views=[dev1,dev3]").segments()) == 10


def test_the_top_view_alone_needs_no_setting(tmp_path):
    """Its archive unpacked and no other: the views that are not there are said, nothing is refused."""
    scans = {
        scan: {d: (v if d == "dev3" else (0, *v[1:])) for d, v in views.items()} for scan, views in ikea_scans().items()
    }
    write_ikea(tmp_path, scans)
    reader = ikea(tmp_path)
    assert {Path(s.video).parts[-3] for s in reader.segments()} == {"dev3"} and len(reader.segments()) == 5
    assert "no video of dev1, dev2 is there: dev3 alone" in reader.notes and not reader.rejected


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_one_bad_video_costs_itself(tmp_path, how):
    """Of five views one is bad: its four labels are in the ledger with the reason, the other ten segments are built."""
    write_ikea(tmp_path, ikea_scans())
    video = tmp_path / "multi_view" / BENCH / "dev1" / "images" / "scan_video.avi"
    if how == "missing":
        video.unlink()
    elif how == "damaged":
        video.write_bytes(b"no video at all")
    reader = ikea(tmp_path)
    assert len(reader.segments()) == 10 and {f.video for f in reader.rejected} == {str(video)}
    assert all(f.reason and "ikea_annotation_db_full" in f.origin for f in reader.rejected)
    with pytest.raises(DataError, match=r"1 of 5 annotated videos cannot be used"):
        ikea(tmp_path, "dataset.allow_quarantine=false")


def test_ikea_segments_of_the_json(ikea_root, tmp_path):
    """gt_segments.json holds for all views; its last frame is included; NA is no action; views end together."""
    parts = [("NA", 0, 4), ("pick up leg", 5, 19), ("other", 20, 25), ("slide bottom of drawer", 50, 89)]
    path = write_segments(tmp_path / "gt_segments.json", {BENCH: parts})
    reader = ikea(ikea_root, f"dataset.annotations={path}")
    assert stretches(reader.segments(), 25) == {
        (device, first, end, verb, target)
        for device in ("dev1", "dev2", "dev3")
        for first, end, verb, target in [(5, 20, "pick up", "leg"), (50, 90, "slide", "bottom panel")]
    }
    assert not reader.notes
    late = write_segments(tmp_path / "late.json", {BENCH: [("spin leg", 50, 200)]})
    with pytest.raises(DataError, match="has 93 frames at 25 frames per second, but labels up to frame 201"):
        ikea(ikea_root, f"dataset.annotations={late}")


def test_ikea_a_video_that_crashes_ffmpeg_has_no_frames(tmp_path, monkeypatch):
    """It is opened in a process of its own; what is wrong with it is said later, with all other videos."""
    (tmp_path / "a.avi").touch()
    monkeypatch.setattr("ace_dist.data.annotations.ikea.video_clock", lambda path: signal.raise_signal(signal.SIGSEGV))
    assert held_frames(tmp_path / "a.avi", 30.0) is None


def test_ikea_finds_its_annotations(ikea_root, tmp_path):
    """The database is taken where it lies, the JSON where there is no database, and nothing at all is an error."""
    for folder in ("multi_view", "top_view"):
        shutil.copytree(ikea_root / folder, tmp_path / "data" / folder)
    with pytest.raises(DataError, match="holds neither ikea_annotation_db_full nor gt_segments.json .*utility_files"):
        ikea(tmp_path)
    (tmp_path / "indexing_files").mkdir()
    write_segments(tmp_path / "indexing_files" / "gt_segments.json", {BENCH: [("spin leg", 0, 9)]})
    assert len(ikea(tmp_path).segments()) == 3
    shutil.copy(ikea_root / "annotations" / "action_annotations" / "ikea_annotation_db_full", tmp_path)
    assert len(ikea(tmp_path).segments()) == len(ikea(ikea_root).segments()) == 14


def test_ikea_folds_are_environments():
    """The authors' calibrations of each environment; any other is never tested; names of another form are refused."""
    expected = {1: 1, 2: 1, 4: 2, 5: 2, 6: 3, 7: 3, 8: 4, 9: 5, 10: 5, 11: 5}
    for calibration, number in expected.items():
        assert environment(f"Lack_TV_Bench/0001_oak_floor_{calibration:02d}_01_2019_08_14_17_17") == f"env{number}"
    assert environment("Lack_TV_Bench/0001_oak_floor_03_01_2019_08_14_17_17") == "calibration03"
    with pytest.raises(DataError, match="the scan Lack_TV_Bench/first is not named PERSON_COLOUR"):
        environment("Lack_TV_Bench/first")
    for fold in range(1, 6):
        assert load_config(["dataset=ikea", f"dataset.fold={fold}"]).dataset.test_groups == [f"env{fold}"]


def test_ikea_files_of_another_kind(ikea_root, tmp_path):
    """A file that is no database, a database without the columns, a JSON of another form, another folder."""
    (tmp_path / "db").write_text("this is no database, but long enough to be taken for one " * 50)
    with pytest.raises(DataError, match="cannot be read as the SQLite database of IKEA-ASM: file is not a database"):
        ikea(ikea_root, f"dataset.annotations={tmp_path / 'db'}")
    connection = sqlite3.connect(tmp_path / "old")
    connection.execute("CREATE TABLE videos (id INTEGER, video_path TEXT, camera TEXT, annotated INTEGER)")
    connection.commit()
    with pytest.raises(DataError, match="table videos lacks nframes; it has annotated, camera, id, video_path"):
        ikea(ikea_root, f"dataset.annotations={tmp_path / 'old'}")
    connection.execute("ALTER TABLE videos ADD COLUMN nframes INTEGER")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="table annotations lacks .*; there is no such table"):
        ikea(ikea_root, f"dataset.annotations={tmp_path / 'old'}")
    (tmp_path / "x.json").write_text('{"results": {}}')
    with pytest.raises(DataError, match=r"x\.json is no gt_segments\.json"):
        ikea(ikea_root, f"dataset.annotations={tmp_path / 'x.json'}")
    with pytest.raises(DataError, match="is not IKEA-ASM: no furniture's folder in it .*IkeaASM/IKEA_ASM_Dataset"):
        ikea(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- ATA
ATA_ROWS = [
    ("front/1.mp4", "front", "P01", "airplane", 0, 31, "take_part"),
    ("front/1.mp4", "front", "P01", "airplane", 31, 45, "SIL"),
    ("side/1.mp4", "side", "P01", "airplane", 0, 31, "take_part"),
    ("front/2.mp4", "front", "P02", "table", 10, 80, "pickup"),
    ("front/3.mp4", "front", "P03", "record_player", 3, 60, "drop"),
]


def ata(root, *settings):
    return reader_of("dataset=ata", f"dataset.root={root}", "dataset.test_groups=[P03]", *settings)


def test_ata_manifest(tmp_path):
    """Rows become segments of their people, views are chosen, people are split, equal file names stay apart."""
    reader = ata(write_ata(tmp_path / "ata", ATA_ROWS))
    rows = [(s.verb, s.object, s.group, round(s.start_s * 30), round(s.end_s * 30)) for s in reader.segments()]
    assert rows == [
        ("take", "part", "P01", 0, 31), ("rest", "hands", "P01", 31, 45), ("take", "part", "P01", 0, 31),
        ("pick up", "item", "P02", 10, 80), ("drop", "item", "P03", 3, 60),
    ]  # fmt: skip
    assert len({s.id for s in reader.segments()}) == 5
    assert len(ata(tmp_path / "ata", "dataset.views=[side]").segments()) == 1
    with pytest.raises(DataError, match="has no view top; it has front, side"):
        ata(tmp_path / "ata", "dataset.views=[top]")
    shards = build_dataset(
        load_config(
            ["dataset=ata", f"dataset.annotations={tmp_path / 'ata' / 'manifest.csv'}", "dataset.workers=1",
             f"dataset.shards={tmp_path / 'shards'}", "dataset.test_groups=[P03]", "dataset.left_out_groups=[P02]",
             "dataset.clip.seconds=1"]
        ).dataset,
        progress=False,
    )  # fmt: skip
    assert [r.group for r in shards.split("test")] == ["P03"] and len(shards.split("train")) == 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("front/1.mp4", "front", "P01", "airplane", "", 5, "drop"), "line 7: start_frame is empty"),
        (("front/1.mp4", "front", "P01", "airplane", "1.5", 5, "drop"), "line 7: start_frame='1.5' is not a frame"),
        (("front/1.mp4", "front", "P01", "airplane", 5, 5, "drop"), "line 7: start_frame=5 is not before end_frame=5"),
        (("front/1.mp4", "front", "P07", "airplane", 5, 9, "drop"), "line 7: person='P07', but 'P01' in an earlier"),
        (("front/1.mp4", "front", "P01", "airplane", 46, 60, "dropp"), "line 7: label 'dropp' .*nearest: 'drop'"),
        (
            ("front/9.mp4", "front", "P01", "airplane", 0, 9, "drop"),
            r"(?s)front/9\.mp4: does not exist.*allow_quarantine=true",
        ),
        (("front/1.mp4", "front", "P01", "airplane", 60, 500, "drop"), "has 80 frames at 30 .*labels up to frame 500"),
    ],
)
def test_a_faulty_manifest(tmp_path, row, words):
    """Each fault with its line."""
    write_ata(tmp_path, ATA_ROWS)
    with (tmp_path / "manifest.csv").open("a") as file:
        file.write(",".join(map(str, row)) + "\n")
    with pytest.raises((DataError, DataError), match=words):
        ata(tmp_path)


def test_ata_says_all_that_it_lacks_at_once(tmp_path):
    """The manifest and the people who test, where the data is to be had, and what makes the manifest."""
    with pytest.raises(DataError) as caught:
        reader_of("dataset=ata", f"dataset.root={tmp_path}")
    for words in ("manifest.csv, which does not exist", "dataset.test_groups=[PERSON", "usa.honda-ri.com/ata",
                  "ace shards ata", "dataset.left_out_groups"):  # fmt: skip
        assert words in str(caught.value)
    with pytest.raises(DataError, match=r"needs\n  dataset\.root=FOLDER.*or dataset\.annotations=FILE"):
        reader_of("dataset=ata", "dataset.test_groups=[P03]")


def test_ata_labels_that_are_no_actions():
    """SIL is a class of its own, as ACE counts; the paper's eleven error classes are of whole videos and no action."""
    table = load_class_table(assets_dir() / "classes" / "ata.json")
    assert str(table.actions["SIL"]) == "rest hands" and len(table.actions) == 15
    assert len(table.not_actions) == 11 and {"idle_time", "missing_screw", "extra_ring"} < table.not_actions


ATA_FORMS = {  # the same three segments in the forms that label files come in
    "frames": "take_part\n" * 31 + "SIL\n" * 14 + "fasten_screw\n" * 15,
    "rows": "label,start,end\ntake_part,0,31\nSIL,31,45\nfasten_screw,45,60\n",
    "last frames": "0 30 take_part\n31 44 SIL\n45 59 Fasten_Screw\n",
    "spaces in labels": "take part\t0\t31\nSIL\t31\t45\nfasten screw\t45\t60\n",
}


@pytest.mark.parametrize("form", ATA_FORMS)
def test_ata_is_converted_from_the_forms_of_label_files(tmp_path, form):
    """Four synchronised cameras share a file or have their own; the manifest gives the segments to the reader."""
    for view in ("front", "side"):
        write_numbered(tmp_path / view / "P07_record-player_2.mp4", 80, 30)
        write_numbered(tmp_path / view / "P08_table_1.mp4", 80, 30)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "P07_record-player_2.txt").write_text(ATA_FORMS[form])  # of both cameras
    for view in ("front", "side"):
        (tmp_path / "labels" / f"P08_table_1_{view}.txt").write_text(ATA_FORMS[form])
    (tmp_path / "README.txt").write_text("no labels")
    (disk := tmp_path.with_name(f"{tmp_path.name} disk")).mkdir()
    (tmp_path / "side").rename(disk / "side")
    (tmp_path / "side").symlink_to(disk / "side")
    notes = convert(ConvertConfig(root=str(tmp_path), output=str(tmp_path / "manifest.csv")))
    assert any("12 segments" in note for note in notes) and "4 here, 1152 in the paper" in " ".join(notes)
    assert "not read: README.txt names no person" in notes
    reader = reader_of("dataset=ata", f"dataset.root={tmp_path}", "dataset.test_groups=[p08]")
    found = {
        (s.group, Path(s.video).parts[-2], round(s.start_s * 30), round(s.end_s * 30), s.verb)
        for s in reader.segments()
    }
    assert found == {
        (person, view, first, end, verb)
        for person in ("p07", "p08") for view in ("front", "side")
        for first, end, verb in ((0, 31, "take"), (31, 45, "rest"), (45, 60, "fasten"))
    }  # fmt: skip


def test_what_does_not_fit_in_ata_is_said_in_one_message(tmp_path):
    """A video without labels, one without a camera, labels without a video, unknown words, a line of no form."""
    write_numbered(tmp_path / "front" / "P01_table_1.mp4", 4, 30)
    write_numbered(tmp_path / "front" / "P02_table_1.mp4", 4, 30)
    write_numbered(tmp_path / "above" / "P01_table_1.mp4", 4, 30)
    for name, text in (
        ("P01_table_1", "take_part\ndance\n"),
        ("P03_table_1", "SIL\n"),
        ("P04_table_1", "a 1 2\nb 3\n"),
    ):
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        convert(ConvertConfig(root=str(tmp_path), output=str(tmp_path / "m.csv")))
    for words in ("P02_table_1.mp4 has no label file", "above/P01_table_1.mp4 says no view: set view=REGEX",
                  "person='p03'", "'dance', no label of ATA", "P04_table_1.txt: line 2, 'b 3'"):  # fmt: skip
        assert words in str(caught.value), words
    assert not (tmp_path / "m.csv").exists()
    with pytest.raises(DataError, match="holds 0 videos .*usa.honda-ri.com/ata"):
        convert(ConvertConfig(root=str(tmp_path / "front" / "nothing"), output="m.csv"))


# ------------------------------------------------------------------------------------------------------------- clocks
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "libx264"), ("a.avi", "mpeg4")]
)
def test_the_clock_of_a_video(tmp_path, name, codec):
    """Rate and number of frames, also where the container does not state the number; frame k is shown at k / rate."""
    count, rate = int(np.random.default_rng().integers(20, 60)), random.choice((12.5, 15, 24, 25, 30))
    video = write_numbered(tmp_path / name, count, rate, size=(64, 64), codec=codec)
    assert video_clock(video) == pytest.approx((rate, count, 0.0), rel=2e-3)
    first = random.randrange(count - 5)
    frames = read_frames(video, first / rate, (first + 5) / rate).frames[:5]  # Matroska rounds times to milliseconds
    assert [frame_number(frame) for frame in frames] == list(range(first, first + 5))


def test_the_clock_of_an_avi_file_whose_header_counts_ticks(tmp_path):
    """A clock of 1/12000 s makes its header claim many times the frames that there are."""
    count = int(np.random.default_rng().integers(20, 60))
    video = write_video(tmp_path / "a.avi", numbered_frames(count, 64, 64), rate=24)
    with av.open(str(video)) as container:
        assert container.streams.video[0].frames != count
    assert video_clock(video) == pytest.approx((24, count, 0.0), rel=1e-3)
