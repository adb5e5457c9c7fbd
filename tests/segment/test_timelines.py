"""From embeddings to a timeline and to files: times fit, none of these is said, every form is what others expect."""

import json
import re
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
import torch
from accessibility import assert_no_serious_fault

from ace_dist.classifier import Classifier
from ace_dist.cli import timelines
from ace_dist.concepts import LabelSet
from ace_dist.config import DatasetConfig, load_config
from ace_dist.data.datasets import build_reader
from ace_dist.data.loader.long_video import stream_frames
from ace_dist.data.task import load_test_trees
from ace_dist.evaluate.protocols import similarity
from ace_dist.models.build import build_model
from ace_dist.segment.calibrate import ScoredVideo, calibrate_on_videos
from ace_dist.segment.captions import FPS, SHORT_SIDE
from ace_dist.segment.decoders import NAMES, DecoderConfig
from ace_dist.segment.embed import EmbeddedVideo
from ace_dist.segment.formats import FORMS, stamp, write_timeline
from ace_dist.segment.labelled import LabelledVideo, labelled_videos
from ace_dist.segment.page import palette
from ace_dist.segment.procedure import Procedure
from ace_dist.segment.protocol import TimelineTest, check_procedures, load_procedures, table
from ace_dist.segment.rejection import Rejection
from ace_dist.segment.segmenter import Calibration, decode, window_similarities
from ace_dist.segment.timeline import NONE
from ace_dist.utils.errors import ConfigError, LabelError
from ace_dist.worlds.tabletop.procedures import draw_procedure_video, write_videos
from ace_dist.worlds.tabletop.world import BASE_ACTIONS, TabletopConfig

LABELS = ["lift box", "spin block", "tap pin"]
STRIDE_S = 0.5
WORLD = TabletopConfig(size=32, fps=8.0)


def embedded(places: list[int | None], rng: np.random.Generator, noise: float = 0.0, name="job.mp4", start_s=0.0):
    """Windows along the axis of their label; None along an axis of its own. Similarities are cosines to the axes."""
    rows = np.eye(8)[[7 if place is None else place for place in places]] + rng.normal(0, noise, (len(places), 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    video = EmbeddedVideo(name, rows.astype(np.float32), start_s, start_s + len(places) * STRIDE_S, STRIDE_S)
    return video, rows[:, : len(LABELS)].astype(float)


CALIBRATION = Calibration(DecoderConfig(), Rejection(threshold=0.5, error_rate=0.1, weights=[10.0, -4.5]))


@pytest.mark.parametrize("decoder", NAMES)
def test_segments_cover_the_video_and_say_none_of_these(decoder, rng):
    places = [None] * 4 + [0] * 8 + [2] * 6 + [None] * 5
    video, cosines = embedded(places, rng, start_s=0.5)
    timeline = decode(video, LABELS, cosines, CALIBRATION.with_decoder(decoder), temperature=0.05)
    assert [(part.label, part.start_s, part.end_s) for part in timeline] == [
        (None, 0.5, 2.5),
        ("lift box", 2.5, 6.5),
        ("tap pin", 6.5, 9.5),
        (None, 9.5, 12.0),
    ]
    assert all(part.score > 0.9 for part in timeline) and timeline[1].cosine > 0.99
    assert timeline.label_at(6.4) == "lift box" and timeline.label_at(11.9) is None and timeline.deviations is None
    assert timeline.frame_labels(3, 1 / 3.0) == [None, "lift box", "tap pin"]
    assert np.allclose(timeline.probabilities.sum(1), 1, atol=1e-5)


def test_without_calibration_every_window_has_a_label(rng):
    video, cosines = embedded([None] * 4 + [0] * 8, rng)
    assert all(part.label for part in decode(video, LABELS, cosines, Calibration(), temperature=0.05))


def test_labels_at_many_times_are_those_of_the_spans(rng):
    """Each span is looked at for every time here; the segments of hours are found by bisection."""
    places = [None, *rng.integers(0, 3, 40).tolist()]
    video, cosines = embedded(places, rng, start_s=0.5)
    timeline = decode(video, LABELS, cosines, CALIBRATION.with_decoder("argmax"), temperature=0.05)
    times_s = np.sort(rng.uniform(0, 23, 200)).round(2)
    slow = [next((s.label for s in timeline if s.start_s <= t < s.end_s), None) for t in times_s]
    assert [timeline.label_at(t) for t in times_s] == slow
    spans = tuple(sorted((s, s + rng.uniform(0.1, 3), str(i)) for i, s in enumerate(rng.uniform(0, 20, 12))))
    slow = [([label for start, end, label in spans if start <= t < end] or [None])[-1] for t in times_s]
    assert LabelledVideo(Path("a.mp4"), "", spans).labels_at(times_s) == slow


def test_a_procedure_names_what_was_done_otherwise(rng):
    video, cosines = embedded([2] * 6 + [0] * 6, rng)
    job = Procedure.parse(["lift box", "spin block", "tap pin"])
    timeline = decode(video, LABELS, cosines, CALIBRATION, 0.05, job)
    assert [(each.kind, each.label) for each in timeline.deviations] == [
        ("swapped", "tap pin"),
        ("missing", "spin block"),
    ]
    blurred = [2, 1, 2, 1, 2, 1, 0, 1, 0, 0, 0, 0]  # a median of one window keeps every change, whatever the order says
    video, cosines = embedded(blurred, rng)
    by_window = replace(CALIBRATION, decoder=DecoderConfig("argmax", median_s=0.0))
    assert [part.label for part in decode(video, LABELS, cosines, by_window, 0.05, job)] == [
        LABELS[label] for label, _ in groupby(blurred)
    ]
    with pytest.raises(LabelError, match="step 'cut cone' is not among actions"):
        decode(video, LABELS, cosines, CALIBRATION, 0.05, Procedure.parse(["cut cone"]))


def test_a_step_that_is_no_label_is_known_before_a_video_is_read(classifier):
    job = Procedure.parse(["cut cone"])
    for ask in (classifier.segment, classifier.stream):
        with pytest.raises(LabelError, match="step 'cut cone' is not among actions"):
            ask("gone.mp4", LABELS, job)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    write_videos(folder, WORLD, train=6, test=2)
    return folder


def scored(folder, split: str, rng, noise: float) -> list[ScoredVideo]:
    """Videos of a model that knows the actions but for some noise."""
    names = [" ".join(action) for action in BASE_ACTIONS]
    reader = build_reader(DatasetConfig(name="jobs", kind="mstcn", shards="", root=str(folder)))
    found = []
    for truth in labelled_videos(reader.segments(), split):
        windows = round(draw_procedure_video(WORLD, split, int(truth.path.stem[-3:])).duration_s / STRIDE_S)
        shown = truth.window_labels(0.0, STRIDE_S, windows)
        rows = np.eye(len(names) + 1)[[names.index(label) if label in names else len(names) for label in shown]]
        rows = rows + rng.normal(0, noise, rows.shape)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        video = EmbeddedVideo(str(truth.path), rows.astype(np.float32), 0.0, windows * STRIDE_S, STRIDE_S)
        found.append(ScoredVideo(truth, video, rows[:, :-1]))
    return found


def test_calibration_chooses_on_training_videos_what_helps_on_others(jobs, rng, tmp_path):
    names = [" ".join(action) for action in BASE_ACTIONS]
    calibration, known = calibrate_on_videos(scored(jobs, "train", rng, 0.7), names, 0.05, error_rate=0.1)
    calibration.save(tmp_path, known)
    assert Calibration.load(tmp_path).rejection == calibration.rejection
    assert known["decoders"][calibration.decoder.name] == max(known["decoders"].values())
    assert known["decoders"][calibration.decoder.name] > known["decoders"]["argmax"]
    videos = scored(jobs, "test", rng, 0.7)
    cosines = {video.embedded.video: video.cosines for video in videos}

    def similarities(videos, labels):
        return [cosines[video.video][:, [names.index(label) for label in labels.labels]] for video in videos]

    base = LabelSet(tuple(names), tuple((name,) for name in names))
    pairs = [(video.truth, video.embedded) for video in videos]
    results = TimelineTest(pairs, similarities, calibration, 0.05).evaluate({"base": [base, base]}, {})["base"]
    best = results["decoders"][calibration.decoder.name]
    assert best["f1@50"] > results["decoders"]["argmax"]["f1@50"]
    assert best["other_words"]["f1@50"] == {"mean": pytest.approx(best["f1@50"]), "std": 0.0}
    assert results["rejection"]["pause"]["auroc"] > 80


def test_labels_that_no_video_shows_have_no_rejection(rng):
    """They are null in the JSON, which knows no NaN, and the other labels are tested."""
    truth = LabelledVideo(Path("job.mp4"), "", ((2.0, 6.0, "lift box"),))
    video, cosines = embedded([None] * 4 + [0] * 8 + [None] * 4, rng)
    shown, absent = (LabelSet((label,), ((label,),)) for label in ("lift box", "tap pin"))
    test = TimelineTest([(truth, video)], lambda videos, labels: [cosines[:, : len(labels.labels)]], CALIBRATION, 0.05)
    results = test.evaluate({"base": [shown, shown], "novel": [absent, absent]}, {})
    scores = results["novel"]["decoders"]["argmax"]
    assert results["novel"]["rejection"] is scores["accuracy_without_background"] is None
    assert scores["other_words"]["accuracy_without_background"] == {"mean": None, "std": None}
    assert results["base"]["rejection"]["known_rejected"] == 0 and "novel" in table(results)
    json.dumps(results, allow_nan=False)


def test_procedures_of_a_test_are_found_or_asked_for(tmp_path, capsys):
    with pytest.raises(LabelError, match="gone is no folder"):
        load_procedures(tmp_path / "gone")
    with pytest.raises(LabelError, match=r"holds no NAME\.yaml"):
        load_procedures(tmp_path)
    (tmp_path / "a.YAML").write_text("steps: [lift box]")
    (tmp_path / "b.json").write_text('{"steps": ["tap pen"]}')
    found = load_procedures(tmp_path)
    check_procedures(found, ["a", "c"], LABELS)
    assert "without a procedure: c; files of no tested video: b\n" in capsys.readouterr().out
    with pytest.raises(LabelError, match="has no file of a tested video; files: a, b; videos: c"):
        check_procedures(found, ["c"], LABELS)
    with pytest.raises(LabelError, match=r"b\.json: step 'tap pen' is none of the run's .*did you mean 'tap pin'"):
        check_procedures(found, ["a", "b"], LABELS)
    (tmp_path / "b.yaml").write_text("steps: [lift box]")
    with pytest.raises(LabelError, match=r"b\.json and b\.yaml are of one video"):
        load_procedures(tmp_path)


def test_a_learned_scale_and_bias_are_in_probabilities_alone(rng):
    """Those of `segment` are those of `classify`; cosines are those of both embeddings."""
    config = load_config(["experiment=demo", "model=tabletop_sigmoid", "method=ace_sigmoid"])
    temperature = config.method.temperature
    classifier = Classifier(config, build_model(config.model, 0, temperature=temperature), load_test_trees(config))
    phrases = tuple(label.phrases for label in classifier.labels(LABELS))
    rows = rng.normal(size=(5, config.model.video.embed_dim)).astype(np.float32)
    (cosines,) = window_similarities(classifier.model, [EmbeddedVideo("", rows, 0.0, 2.5, 0.5)], phrases)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.allclose(cosines, unit @ classifier.encode_text(LABELS).numpy().T, atol=1e-6)
    (logits,) = similarity(classifier.model, torch.from_numpy(rows), [phrases], temperature)
    found = Calibration().rejection.log_probabilities(rows.astype(float), cosines, classifier.temperature)
    assert np.allclose(np.exp(found[:, :-1]), logits.double().softmax(1).numpy(), atol=1e-5)


def test_a_calibration_of_scaled_cosines_is_not_used(tmp_path, capsys):
    """Where the scale was learned; elsewhere the numbers of an earlier version are those of this one."""
    CALIBRATION.save(tmp_path, {})
    assert Calibration.load(tmp_path, learned_scale=True).rejection == CALIBRATION.rejection
    content = json.loads((tmp_path / "calibration.json").read_text())
    del content["version"]
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    assert Calibration.load(tmp_path).rejection == CALIBRATION.rejection and not capsys.readouterr().out
    assert not Calibration.load(tmp_path, learned_scale=True).is_calibrated
    assert "calibration.json is not used" in capsys.readouterr().out


def test_a_broken_calibration_is_named(tmp_path):
    (tmp_path / "calibration.json").write_text('{"decoder": {"name": "viterbi"}, "rejection": {"threshold": "high"}}')
    with pytest.raises(ConfigError, match=r"calibration\.json, rejection: .*ace calibrate"):
        Calibration.load(tmp_path)


@pytest.fixture
def timeline(jobs, rng):
    """Of a rendered video, with labels that would break a careless writer, and a deviation."""
    path = jobs / "videos" / "job-test-000.mp4"
    windows = round(draw_procedure_video(WORLD, "test", 0).duration_s / STRIDE_S)
    video, cosines = embedded(([0] * 9 + [None] * 4 + [1] * 6 + [2] * 200)[:windows], rng, name=str(path))
    found = decode(video, LABELS, cosines, CALIBRATION, 0.05, Procedure.parse(["lift box", "tap pin", "spin block"]))
    return found


def test_a_timeline_corrected_in_another_program_is_training_data(timeline, jobs, tmp_path):
    expected = [(part.start_s, part.end_s, part.label) for part in timeline.actions]
    video = jobs / "videos" / "take%201 #2.mp4"  # a name that an address must quote
    shutil.copy(timeline.video, video)
    timeline = replace(timeline, video=str(video))
    for ending in (".csv", ".eaf", ".labelstudio.json"):
        path = jobs / "videos" / f"shift{ending}"
        write_timeline(timeline, path)
        segments = build_reader(DatasetConfig(name="own", kind="csv", shards="", annotations=str(path))).segments()
        for segment, (start_s, end_s, label) in zip(segments, expected, strict=True):
            assert f"{segment.verb} {segment.object}" == label and segment.split == "train"
            assert Path(segment.video).samefile(video)
            assert abs(segment.start_s - start_s) <= 0.02 and abs(segment.end_s - end_s) <= 0.02


def test_every_form_is_written_whole_and_is_what_its_readers_expect(timeline, tmp_path):
    for ending in FORMS:
        write_timeline(timeline, tmp_path / f"out{ending}")
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["video"] == timeline.video and [part["label"] for part in content["segments"]][:2] == [
        "lift box",
        None,
    ]
    assert content["duration_s"] == pytest.approx(timeline.end_s) and content["deviations"][0]["kind"]
    assert (tmp_path / "out.vtt").read_text().startswith("WEBVTT\n\n00:00:00.000 --> 00:00:04.500\nlift box\n")
    assert (tmp_path / "out.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:04,500\nlift box\n\n2\n")
    slots = [int(slot.get("TIME_VALUE")) for slot in ElementTree.parse(tmp_path / "out.eaf").iter("TIME_SLOT")]
    assert slots[:2] == [0, 4500]
    page = (tmp_path / "out.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(timeline) and "swapped" in page
    assert not re.search(r"(src|href)=.(https?:|//)|<script", page) and len(page) < 3_000_000
    with av.open(str(tmp_path / "out.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(video=0)]
    pictures = list(stream_frames(Path(timeline.video), FPS, SHORT_SIDE))
    assert len(shown) == len(pictures)
    lower = WORLD.size // 2  # the letters' least height makes the band half of so small a picture
    changes = [np.abs(a - b)[lower:].mean() for a, b in zip(shown, pictures, strict=True)]
    labelled = [timeline.label_at(number / FPS) is not None for number in range(len(shown))]
    assert 0 < sum(labelled) < len(labelled) and [change > 30 for change in changes] == labelled
    with pytest.raises(ConfigError, match=r"out\.doc: a timeline is written as one of"):
        write_timeline(timeline, tmp_path / "out.doc")


def test_the_page_in_a_browser(timeline, phone, tmp_path):
    """Offline, on a phone: links from the bar to the segments, no sideways scroll, nothing serious to axe-core."""
    path = tmp_path / "out.html"
    write_timeline(timeline, path)
    phone.goto(path.as_uri())
    phone.get_by_role("link").last.press("Enter")
    assert phone.locator(".segments li:target").inner_text().startswith(timeline[len(timeline) - 1].label or NONE)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390, "the page is wider than a phone"
    assert_no_serious_fault(phone)
    assert phone.foreign == [] and phone.errors == []


def test_labels_from_outside_stay_text(timeline, tmp_path):
    bad = '<img src=x onerror="alert(1)"> & "co"'
    hostile = replace(
        timeline,
        labels=(bad, *timeline.labels[1:]),
        segments=tuple(replace(part, label=bad) if part.label == "lift box" else part for part in timeline),
    )
    for ending in (".html", ".vtt", ".eaf"):
        write_timeline(hostile, tmp_path / f"out{ending}")
        assert "<img src=x" not in (tmp_path / f"out{ending}").read_text()
    assert bad in {value.text for value in ElementTree.parse(tmp_path / "out.eaf").iter("ANNOTATION_VALUE")}


def test_two_videos_of_one_name_do_not_share_a_file():
    """The second timeline would replace the first without a word."""
    with pytest.raises(ConfigError, match=r"output=out/\*\.csv: several videos are called 'cam'.* one by one"):
        timelines.segment(["run=runs/none", "video=[a/cam.mp4, b/cam.mp4]", "actions=[lift box]", "output=out/*.csv"])


@pytest.mark.parametrize("seen", [{0, 8}, {0, 8, 16, 3}, set(range(0, 16, 2))])
def test_labels_that_are_seen_have_colours_of_their_own(seen):
    """Also the first and the ninth of many; eight can be told apart."""
    labels = tuple(f"spin block {place}" for place in range(20))
    fills = palette(labels, tuple(place in seen for place in range(20)))
    assert len({fills[labels[place]] for place in seen}) == len(seen) and set(fills) == set(labels)


def test_a_stamp_counts_minutes_and_hours():
    times = (0.0, 59.9996, 61.5, 3723.45, 36000.0)
    shown = ["00:00:00.000", "00:01:00.000", "00:01:01.500", "01:02:03.450", "10:00:00.000"]
    assert [stamp(time_s, ".") for time_s in times] == shown
