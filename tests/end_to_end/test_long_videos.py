"""From a trained run to timelines by the commands: segment, calibrate, correct, and test."""

import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from live_streams import encode

from ace_dist.cli.data import build_shards
from ace_dist.cli.timelines import calibrate, evaluate_timelines, segment, watch
from ace_dist.config import DatasetConfig, load_config
from ace_dist.data.datasets import build_reader
from ace_dist.data.shards import ShardSet
from ace_dist.segment.live import OF_THE_JOB
from ace_dist.segment.procedure import Procedure
from ace_dist.train.trainer import train
from ace_dist.utils.errors import UserError
from ace_dist.worlds.tabletop.procedures import write_videos
from ace_dist.worlds.tabletop.world import TabletopConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_world, ranks):
    folder = tmp_path_factory.mktemp("runs") / "run"
    steps = ["training.batch_size=4", "training.max_steps=2", "training.save_every_steps=2", "training.device=cpu"]
    train(load_config([*small_world(), f"run={folder}", *steps]), ranks)
    return folder


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    write_videos(folder, TabletopConfig(), train=4, test=2)
    return folder


def test_segment_calibrate_correct_and_test(run, launch, jobs, tmp_path, capsys):
    names, cache = [f"{jobs}/videos/job-test-00{i}.mp4" for i in range(2)], f"cache={tmp_path / 'cache'}"
    said = launch("segment", f"run={run}", f"video={names[0]}", "actions=[lift box, tap pin]", cache).stdout
    assert "not calibrated" in said and "lift box" in said
    calibrate([f"run={run}", f"videos={jobs}", "error_rate=0.2", cache])
    known = json.loads((run / "calibration.json").read_text())["known"]
    assert known["videos"] == 4 and set(known["decoders"]) == {"argmax", "viterbi", "transport"}
    capsys.readouterr()
    labels = "actions=[lift box, push block, drop ring, shake cup, tap pin]"
    outputs = f"output=[{tmp_path}/out/*.json, {jobs}/videos/*.csv, {tmp_path}/out/*.html]"
    segment([f"run={run}", f"video=[{', '.join(names)}]", labels, "decoder=viterbi", outputs, cache])
    said = capsys.readouterr().out
    assert "not calibrated" not in said and said.count("written: ") == 6
    found = json.loads((tmp_path / "out" / "job-test-000.json").read_text())
    assert found["segments"][0]["start_s"] == 0 and found["segments"][-1]["end_s"] == pytest.approx(found["duration_s"])
    table = jobs / "videos" / "job-test-000.csv"  # a person puts it right
    head = table.read_text().splitlines()[0]
    table.write_text(f"{head}\n{names[0]},1.0,3.0,raise,box,train,anna\n")
    (own,) = build_reader(DatasetConfig(name="own", kind="csv", shards="", annotations=str(table))).segments()
    assert (own.verb, own.group) == ("raise", "anna")
    build_shards(
        ["dataset=csv", f"dataset.annotations={table}", f"dataset.shards={tmp_path}/again", "dataset.workers=1"]
    )
    assert ShardSet.load(f"{tmp_path}/again").split("train")[0].verb == "raise"  # and the loop begins again
    evaluate_timelines([f"run={run}", f"videos={jobs}", f"procedures={jobs}/procedures", cache])
    results = json.loads((run / "timelines.json").read_text())
    assert set(results) >= {"base", "novel", "mixed", "deviations"} and results["videos"] == 2
    mixed = results["mixed"]["decoders"]["transport"]
    counts = np.array(mixed["other_words"].pop("videos"))  # of each set of words and video: edit, hits, false, missed
    assert len(mixed["other_words"]) == 6 and counts.shape[1:] == (2, 4)
    assert counts[..., 0].mean() == pytest.approx(mixed["other_words"]["edit"]["mean"])
    of_words = counts.sum(1)
    f1 = 200 * of_words[:, 1] / (2 * of_words[:, 1] + of_words[:, 2] + of_words[:, 3])
    assert f1.mean() == pytest.approx(mixed["other_words"]["f1@50"]["mean"])
    assert set(results["mixed"]["without_rejection"]) == {"argmax", "viterbi", "transport"}
    assert set(results["deviations"]) == {"argmax", "viterbi", "transport", "procedure"}


@pytest.mark.parametrize(
    "settings, message",
    [
        (["actions=[lift box, Lift_Box]"], "once"),
        (["actions=[lift box, '']"], "non-empty"),
        (["actions=[lift box, tap pin]", "decoder=hmm"], "decoder=hmm is not one of argmax"),
        (["actions=[lift box, tap pin]", "output=out.doc"], "chosen by the ending"),
        (["actions=[lift box, tap pin]", "stride_s=5"], "stride_s=5.0 must lie above 0 and not above 2"),
        (["procedure=gone.yaml"], "gone.yaml"),
        (["actions='lift box, tap pin'"], r"write several as '\[lift box, tap pin\]'"),
        ([], "actions"),
    ],
)
def test_what_cannot_be_segmented_is_refused_in_a_sentence(settings, message, run, jobs):
    with pytest.raises(UserError, match=message):
        segment([f"run={run}", f"video={jobs}/videos/job-test-000.mp4", *settings, "cache=null"])


def test_clips_alone_calibrate_too_and_those_of_the_training_are_said_to_be_known(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "calibration.json").unlink(missing_ok=True)
    calibrate([f"run={copy}"])
    assert "the model trained on these clips" in capsys.readouterr().out
    content = json.loads((copy / "calibration.json").read_text())
    assert content["known"]["clips"] == content["known"]["windows"]["actions"] > 0
    assert content["known"]["held_out"] is False and content["rejection"]["weights"][0] > 0


def test_clips_as_bytes_calibrate_to_the_same_numbers(run, tmp_path):
    """A run with `loader.dtype=uint8`, whose loader gives bytes; weighed in float32 both ways."""
    thresholds = []
    for dtype in ("float32", "uint8"):
        copy = shutil.copytree(run, tmp_path / dtype)
        settings = (copy / "config.yaml").read_text().partition("\n")[2]  # less the checksum of an unedited one
        assert settings.count("dtype: float32") == 1
        (copy / "config.yaml").write_text(settings.replace("dtype: float32", f"dtype: {dtype}"))
        calibrate([f"run={copy}"])
        thresholds.append(json.loads((copy / "calibration.json").read_text())["rejection"]["threshold"])
    assert thresholds[1] == pytest.approx(thresholds[0], abs=1e-3)


def test_watch_prints_lines_of_json_alone(run, launch, tmp_path):
    stream, log = tmp_path / "stream.mkv", tmp_path / "lines.jsonl"
    stream.write_bytes(encode(48, "matroska"))
    log.write_text("before\n")
    with stream.open("rb") as stdin:
        words = ["source=-", "actions=[lift box, tap pin]", "minimum_s=0.5", "realtime=false", f"output={log}"]
        done = launch("watch", f"run={run}", *words, stdin=stdin)
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events[:2] == ["open", "change"] and events[-1] == "end" and log.read_text() == "before\n" + done.stdout


def test_watch_says_what_a_job_does_otherwise(run, jobs, launch):
    """Every step of a job that was not seen has a line, and no other lines stand between those of the labels."""
    steps, video = Procedure.load(jobs / "procedures/job-test-000.json").steps, jobs / "videos/job-test-000.mp4"
    words = [f"procedure={jobs}/procedures/job-test-000.json", f"source={video}", "realtime=false", "minimum_s=0.5"]
    events = [json.loads(line) for line in launch("watch", f"run={run}", *words).stdout.splitlines()]
    changes = {event["label"] for event in events if event["event"] == "change"}
    missing = {event["label"] for event in events if event["event"] == "missing"}
    assert changes - {None} <= {step.label for step in steps} and events[-1]["event"] == "end"
    is_done = any(event["event"] == "done" for event in events)
    assert is_done or {step.label for step in steps if not step.optional} - changes <= missing
    assert all(set(event) == {"event", "time_s", "label", "note", "dropped", "utc"} for event in events
               if event["event"] in OF_THE_JOB)  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_ends_on_a_signal_with_a_last_line(run, jobs, tmp_path, number):
    log = tmp_path / "lines.jsonl"

    def send() -> None:
        for _ in range(600):
            if log.is_file() and "open" in log.read_text():
                break
            time.sleep(0.1)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=send).start()
    words = [f"source={jobs}/videos/job-test-000.mp4", "actions=[lift box, tap pin]", f"output={log}"]
    assert watch([f"run={run}", *words]) == 128 + number and signal.getsignal(number) == before
    assert json.loads(log.read_text().splitlines()[-1])["note"] == "stopped"


def test_watch_says_what_it_needs(run):
    with pytest.raises(UserError, match=r"actions='\[\.\.\.\]', or a procedure"):
        watch([f"run={run}", "source=camera"])
    with pytest.raises(UserError, match=r"gone\.mp4 does not exist"):
        watch([f"run={run}", "source=gone.mp4", "actions=[lift box, tap pin]"])
