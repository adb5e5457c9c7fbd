"""Exports of annotation tools become the segments drawn in them; MS-TCN's layout is read whatever the data."""

import dataclasses
import json
import signal
from types import SimpleNamespace

import pytest

from ace_dist.config import DatasetConfig
from ace_dist.data.annotations import exports
from ace_dist.data.annotations.mstcn import mapped_classes
from ace_dist.data.datasets import build_dataset, build_reader, load_shards
from ace_dist.data.segments import Reader
from ace_dist.segment.formats import to_label_studio
from ace_dist.utils.errors import DataError
from ace_dist.worlds.tabletop.procedures import draw_procedure_video, write_videos
from ace_dist.worlds.tabletop.world import TabletopConfig

WORLD = TabletopConfig(size=16, fps=5.0)
NAME = "job-train-000.mp4"
EXPECTED = [(1.2, 3.4, "spin block", "train", "job-train-000"), (4.0, 5.2, "wipe plate", "train", "job-train-000")]

ELAN = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT FORMAT="3.0" VERSION="3.0">
  <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
    <MEDIA_DESCRIPTOR MEDIA_URL="file:///home/anna/job-train-000.mp4" MIME_TYPE="video/mp4"/>
  </HEADER>
  <TIME_ORDER>
    <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="1200"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="3400"/>
    <TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="4000"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="5200"/>
  </TIME_ORDER>
  <TIER TIER_ID="actions" LINGUISTIC_TYPE_REF="default-lt">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
      <ANNOTATION_VALUE>spin block</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
      <ANNOTATION_VALUE>wipe plate</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
  <TIER TIER_ID="remarks" LINGUISTIC_TYPE_REF="default-lt">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts4">
      <ANNOTATION_VALUE>blurred</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
</ANNOTATION_DOCUMENT>
"""
CVAT_TRACKS = """<annotations><version>1.1</version>
<meta><task><name>first shift</name><source>job-train-000.mp4</source></task></meta>
<track id="0" label="wipe plate" source="manual">
  <box frame="20" outside="0" occluded="0" keyframe="1" xtl="0" ytl="0" xbr="9" ybr="9" z_order="0"/>
  <box frame="25" outside="0" occluded="0" keyframe="0" xtl="0" ytl="0" xbr="9" ybr="9" z_order="0"/>
  <box frame="26" outside="1" occluded="0" keyframe="1" xtl="0" ytl="0" xbr="9" ybr="9" z_order="0"/></track>
<track id="1" label="spin block" source="manual">
  <box frame="6" outside="0" occluded="0" keyframe="1" xtl="0" ytl="0" xbr="9" ybr="9" z_order="0"/>
  <box frame="17" outside="1" occluded="0" keyframe="1" xtl="0" ytl="0" xbr="9" ybr="9" z_order="0"/></track>
</annotations>"""
CVAT_TAGS = (
    "<annotations><version>1.1</version><meta><task><source>job-train-000.mp4</source></task></meta>"
    + "".join(
        f'<image id="{i}" name="frame_{i:06d}"><tag label="{label}" source="manual"/></image>'
        for label, frames in (("spin block", range(6, 17)), ("wipe plate", range(20, 26)))
        for i in frames
    )
    + "</annotations>"
)
LABEL_STUDIO = [
    {
        "id": 7,
        "data": {"video": "/data/local-files/?d=line%202/job-train-000.mp4", "frame_rate": 5},
        "predictions": [{"result": []}],
        "annotations": [
            {
                "result": [
                    {
                        "type": "timelinelabels",
                        "from_name": "actions",
                        "to_name": "video",
                        "value": {"ranges": [{"start": first, "end": last}], "timelinelabels": [label]},
                    }
                    for first, last, label in ((7, 17, "spin block"), (21, 26, "wipe plate"))
                ]
            }
        ],
    }
]
VIA = {
    "project": {"pname": "line 2"},
    "attribute": {"1": {"aname": "action", "options": {"0": "spin block", "1": "wipe plate"}}},
    "file": {"1": {"fid": "1", "fname": NAME, "type": 4, "loc": 1, "src": ""}},
    "view": {"9": {"fid_list": ["1"]}},
    "metadata": {
        "9_b": {"vid": "9", "flg": 0, "z": [4.0, 5.2], "xy": [], "av": {"1": "1"}},
        "9_a": {"vid": "9", "flg": 0, "z": [1.2, 3.4], "xy": [], "av": {"1": "0"}},
        "9_c": {"vid": "9", "flg": 0, "z": [2.0], "xy": [2, 1, 1, 5, 5], "av": {"1": "0"}},
    },
}
EXPORTS = {
    "job.eaf": ELAN,
    "tracks.xml": CVAT_TRACKS,
    "tags.xml": CVAT_TAGS,
    "label-studio.json": json.dumps(LABEL_STUDIO),
    "via.json": json.dumps(VIA),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    write_videos(folder / "job", WORLD, train=1, test=0)
    (folder / "job" / "videos" / NAME).rename(folder / NAME)
    return folder


def reader(path, **settings) -> Reader:
    return build_reader(DatasetConfig(name="own", kind="csv", shards="", annotations=str(path), **settings))


def segments(path):
    return [(s.start_s, s.end_s, f"{s.verb} {s.object}", s.split, s.group) for s in reader(path).segments()]


@pytest.mark.parametrize("name", EXPORTS)
def test_what_was_drawn_is_read(name, folder):
    path = folder / name
    path.write_text(EXPORTS[name], encoding="utf-8")
    found = segments(path)
    for (start_s, end_s, *rest), (wanted_start_s, wanted_end_s, *wanted) in zip(found, EXPECTED, strict=True):
        assert abs(start_s - wanted_start_s) <= 0.001 and abs(end_s - wanted_end_s) <= 0.001 and rest == wanted
    assert all(path.name in segment.origin for segment in reader(path).segments())


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.eaf", ELAN.replace('"actions"', '"steps"'), "rename the one of the actions to 'actions'"),
        ("b.eaf", ELAN.replace(' TIME_VALUE="4000"', ""), "annotation a2 has no time"),
        ("c.eaf", ELAN.replace("spin block", "spin"), "annotation a1.*has no object after its verb 'spin'"),
        ("d.eaf", ELAN.replace("job-train-000", "gone"), "gone.mp4 does not exist"),
        ("e.eaf", ELAN[:300], "is no export of ELAN"),
        ("m.xml", CVAT_TRACKS.replace("</task>", "</task><task><source>b.mp4</source></task>"), "several videos"),
        ("f.xml", '<!DOCTYPE x [<!ENTITY a "aaaa">]><annotations>&a;</annotations>', "declares entities"),
        ("g.xml", "<html></html>", "its root is <html>"),
        ("h.json", "[]", "holds no labelled stretch"),
        ("i.json", '{"a": 1}', "neither a list of tasks"),
        ("l.json", json.dumps(LABEL_STUDIO).replace("job-train-000", "gone"), "gone.mp4 does not exist"),
        ("j.json", "[" * 100_000, "deeper than"),
        ("k.json", json.dumps(VIA).replace("4.0, 5.2", "5.2, 4.0"), "start_s=5.200 is not before"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(name, content, message, folder):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as refused:
        reader(path)
    assert name in str(refused.value)


def test_frames_of_cvat_are_those_of_the_file(folder):
    """A task that shows every second frame from the fourth on names each by its number in the file, as all others."""
    task = "<start_frame>4</start_frame><frame_filter>step=2</frame_filter><source>"
    shown = {"spin block": range(6, 17, 2), "wipe plate": range(20, 26, 2)}
    tags = "".join(
        f'<image id="{i}" name="frame_{i:06d}"><tag label="{label}" source="manual"/></image>'
        for label, frames in shown.items()
        for i in frames
    )
    head = CVAT_TAGS[: CVAT_TAGS.index("<image")].replace("<source>", task)
    (folder / "every-second.xml").write_text(f"{head}{tags}</annotations>", encoding="utf-8")
    assert [found[:3] for found in segments(folder / "every-second.xml")] == [
        (1.2, 3.6, "spin block"),
        (4.0, 5.2, "wipe plate"),
    ]
    tracks = CVAT_TRACKS.replace("<source>", task).replace('frame="17"', 'frame="18"')
    (folder / "tracks-from-four.xml").write_text(tracks, encoding="utf-8")
    assert [found[:2] for found in segments(folder / "tracks-from-four.xml")] == [(1.2, 3.6), (4.0, 5.2)]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("take #2.mp4", "take #2.mp4"),
        ("./what?.mp4", "what?.mp4"),
        ("file:///C:/a/take%20%232.mp4", "take #2.mp4"),
        (r"C:\videos\a.mp4", "a.mp4"),
        ("https://host/data/upload/1/a.mp4?t=3#x", "a.mp4"),
        ("/data/local-files/?d=line%202/a.mp4", "a.mp4"),
    ],
)
def test_names_of_videos_are_taken_whole(address, name):
    assert exports.file_name(address) == name


def test_frames_of_cvat_begin_when_the_first_one_is_shown(folder, monkeypatch):
    """A recording that begins with sound alone shows frame 0 later; the times are those that players show."""
    monkeypatch.setattr(exports, "video_clock", lambda path: (5.0, 100, 0.5))
    (folder / "late.xml").write_text(CVAT_TRACKS, encoding="utf-8")
    assert [found[:2] for found in segments(folder / "late.xml")] == [(1.7, 3.9), (4.5, 5.7)]


def test_label_studio_counts_24_frames_a_second_unless_told(folder):
    """`frameRate` of its <Video> tag, 24 by default whatever the file (labelstud.io/tags/video), is in no export."""
    tasks = json.loads(json.dumps(LABEL_STUDIO))
    del tasks[0]["data"]["frame_rate"]
    (folder / "plain.json").write_text(json.dumps(tasks), encoding="utf-8")
    found = segments(folder / "plain.json")
    assert [times[:2] for times in found] == [(0.25, 0.708), (0.833, 1.083)]
    (note,) = reader(folder / "plain.json").notes
    assert "24, Label Studio's own default, is taken" in note and "data.frame_rate" in note
    (folder / "told.json").write_text(json.dumps(LABEL_STUDIO), encoding="utf-8")
    assert not reader(folder / "told.json").notes


def test_what_segment_writes_for_label_studio_is_read_back(folder):
    found = [SimpleNamespace(start_s=start_s, end_s=end_s, label=label) for start_s, end_s, label, *_ in EXPECTED]
    text = to_label_studio(SimpleNamespace(video=NAME, actions=found))
    (folder / "predicted.json").write_text(text, encoding="utf-8")
    for (start_s, end_s, label, *_), wanted in zip(segments(folder / "predicted.json"), EXPECTED, strict=True):
        assert label == wanted[2] and abs(start_s - wanted[0]) <= 0.5 / 24 and abs(end_s - wanted[1]) <= 0.5 / 24


def test_a_video_that_crashes_ffmpeg_costs_a_process_of_its_own(folder, monkeypatch):
    """Frames become seconds by the video's rate: it is asked where a build reads it, under `dataset.timeout_s`."""
    (folder / "tracks.xml").write_text(CVAT_TRACKS, encoding="utf-8")
    monkeypatch.setattr(exports, "video_clock", lambda path: signal.raise_signal(signal.SIGSEGV))
    with pytest.raises(DataError, match=f"tracks.xml, .*: {NAME} cannot be read: it crashes FFmpeg"):
        reader(folder / "tracks.xml")
    monkeypatch.setattr(exports, "video_clock", lambda path: signal.pause())
    with pytest.raises(DataError, match="it was not read within 1 s"):
        reader(folder / "tracks.xml", timeout_s=1.0)


def test_any_data_set_of_mstcns_layout_is_read(tmp_path):
    write_videos(tmp_path, WORLD, train=2, test=1)
    settings = DatasetConfig(name="jobs", kind="mstcn", shards="", root=str(tmp_path))
    found = build_reader(settings).segments()
    for split, count in (("train", 2), ("test", 1)):
        for index in range(count):
            video = draw_procedure_video(WORLD, split, index)
            own = [s for s in found if s.group == video.name]
            assert [(f"{s.verb} {s.object}", s.split) for s in own] == [(" ".join(a), split) for *_, a in video.spans]
            assert [s.start_s for s in own] == pytest.approx([start for start, *_ in video.spans])
    with pytest.raises(DataError, match=r"test\.split3\.bundle does not exist .*there are test\.split1\.bundle"):
        build_reader(DatasetConfig(name="jobs", kind="mstcn", shards="", root=str(tmp_path), fold=3))
    shards = build_dataset(dataclasses.replace(settings, shards=str(tmp_path / "shards"), workers=1), progress=False)
    assert len(shards.split("test")) == len([s for s in found if s.split == "test"])
    with pytest.raises(DataError, match="stores the split of fold 1, and dataset.fold is 2"):
        load_shards(dataclasses.replace(settings, shards=str(tmp_path / "shards"), fold=2))
    table = (tmp_path / "mapping.txt").read_text()
    (tmp_path / "mapping.txt").write_text(f"{table}90 cut\n91 put_down\n92 screw_in\n93 pick_up_box\n")
    mapped = mapped_classes(tmp_path).actions
    assert [str(mapped[label]) for label in list(mapped)[-4:]] == [
        "cut item", "put down item", "screw in item", "pick up box",
    ]  # fmt: skip
    (tmp_path / "mapping.txt").write_text("0 background\nlift box\n")
    with pytest.raises(DataError, match=r"mapping\.txt line 2: 'lift box' is not a number and a label"):
        build_reader(settings)
