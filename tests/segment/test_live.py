"""Live labels: those of the same windows as `segment`, said without the future, and streams that break or lie."""

import itertools
import os
import threading
import time

import numpy as np
import pytest
from live_streams import SIZE, encode, pictures, rtsp_camera, server, sound

import ace_dist.data.build.live as live
import ace_dist.segment.live_feed as live_feed
from ace_dist.data.build.container import open_video
from ace_dist.data.build.live import (
    ArrivalClock,
    LiveFrame,
    LiveFrames,
    LiveGrid,
    LivePicture,
    PlayClock,
    Unhurried,
    grid_pictures,
)
from ace_dist.data.build.live_source import LiveSource
from ace_dist.segment.decoders.live import LiveDecoder
from ace_dist.segment.embed import embed_video
from ace_dist.segment.live_feed import Feed, Window, live_windows
from ace_dist.segment.rejection import Rejection
from ace_dist.segment.segmenter import FLOOR, window_similarities
from ace_dist.segment.windows import WindowGrid
from ace_dist.utils.errors import ConfigError, DataError, UserError

LABELS = ["lift box", "spin block", "tap pin"]
GRID = LiveGrid(first_s=0.125, interval_s=0.25, pause_s=2.0)


@pytest.fixture
def stream(classifier, monkeypatch):
    """Events of a source; each label may last as short as it wants, so that much is said."""
    monkeypatch.setattr(live_feed, "RETRY_S", (0.01, 0.02))
    return lambda source, **settings: classifier.stream(source, LABELS, minimum_s=0.5, **settings)


def told(event):
    """What does not depend on the machine."""
    return event.event, event.time_s, event.label, event.start_s, event.score, event.runner_up


# ------------------------------------------------------------------------------------------------------- the labels
def test_lines_are_decided_by_the_windows_of_segment(classifier, stream, tmp_path):
    video = tmp_path / "video.mkv"
    video.write_bytes(encode(128, "matroska"))
    offline = embed_video(classifier.model, classifier.config, video)
    (cosines,) = window_similarities(classifier.model, [offline], tuple(x.phrases for x in classifier.labels(LABELS)))
    scores = classifier.calibration.rejection.log_probabilities(
        offline.embeddings.astype(float), cosines, classifier.config.method.temperature
    )
    decoder, wanted = LiveDecoder(1, classifier.calibration.decoder.switch_cost), []
    for place, row in enumerate(np.maximum(scores, FLOOR)[:-2]):  # the last ones reach out of the video
        if (step := decoder.step(place * 0.5, row)) and step.is_new:
            wanted.append((LABELS[step.label], step.start_s, pytest.approx(step.means[step.label], abs=2e-3)))
    events = list(stream(video, realtime=False))
    changes = [event for event in events if event.event == "change"]
    assert [(event.label, event.start_s, event.score) for event in changes] == wanted and len(wanted) > 1
    assert all(event.time_s == pytest.approx(event.start_s + 1.125) for event in changes[:1])
    seconds = [int(event.time_s) for event in events if event.has_label]
    assert sorted(set(seconds)) == list(range(1, seconds[-1] + 1))  # a line every second
    assert len(seconds) <= len(set(seconds)) + len(changes)
    assert events[0].event == "open" and events[-1].event == "end" and "has ended" in events[-1].note
    assert all(event.dropped == 0 for event in events)
    assert set(events[-1].as_json()) == {"event", "time_s", "note", "dropped", "utc"}
    assert set(changes[0].as_json()) >= {"time_s", "label", "score", "runner_up", "latency_ms", "dropped", "utc"}


def test_past_lines_do_not_know_the_future(stream, fresh_seed):
    rng = np.random.default_rng(fresh_seed)
    times, shown = np.arange(80) / 8, pictures(80, fresh_seed)
    before = list(stream(zip(times, shown, strict=True)))
    for cut in rng.integers(30, 75, 2).tolist():
        other = np.concatenate([shown[:cut], rng.integers(0, 255, shown[cut:].shape, np.uint8)])
        late = np.concatenate([times[:cut], times[cut:] + rng.choice([0.0, 0.05, 100.0])])
        after = list(stream(zip(late, other, strict=True)))
        known = [told(event) for event in before if event.time_s < times[cut] and event.event != "end"]
        assert [told(event) for event in after][: len(known)] == known and known


def test_none_of_these_is_said(classifier, stream, monkeypatch):
    nothing = Rejection(threshold=1e3, error_rate=0.1)
    monkeypatch.setattr(classifier, "calibration", classifier.calibration.__class__(rejection=nothing, source="test"))
    (change,) = [event for event in stream(zip(itertools.count(0, 0.125), pictures(40))) if event.event == "change"]
    assert change.label is None and change.runner_up in LABELS and '"label": null' in change.as_line()


# ------------------------------------------------------------------------------------------------ times and windows
def frames(times, dropped=()):
    return (LiveFrame(time_s, 0.0, sum(d <= k for d in dropped), k) for k, time_s in enumerate(times))


def test_the_first_frame_at_or_behind_each_time_is_taken():
    shown = [(each.time_s, each.pixels) for each in grid_pictures(frames(np.arange(9) / 8), lambda f, _: f, GRID)]
    assert shown == [(0.125, 1), (0.375, 3), (0.625, 5), (0.875, 7)]
    paused = [0.0, 0.13, 0.2, 1.0, 1.1, 1.2]
    shown = [(each.time_s, each.pixels) for each in grid_pictures(frames(paused), lambda f, _: f, GRID)]
    assert shown == [(0.13, 1), (0.375, 1), (0.625, 1), (1.0, 3), (1.2, 5)]  # meanwhile it showed the one before


def test_times_that_jump_begin_anew_and_small_steps_back_are_left_out():
    times = [
        *np.arange(40) / 8,
        *(1000 + np.arange(40) / 8),
        *(500 + np.arange(40) / 8),
        504.5,
        *(505 + np.arange(9) / 8),
    ]
    items = list(live_windows(grid_pictures(frames(times), lambda f, _: f, GRID), WindowGrid(8, 0.25, 2)))
    jumps = [item for item in items if not isinstance(item, Window)]
    assert [(jump.event, jump.time_s) for jump in jumps] == [("jump", 1000.125), ("jump", 500.125)]
    assert "times jump from 4.88 to 1000.00 s" in jumps[0].note
    for window in (item for item in items if isinstance(item, Window)):
        seen = [picture.time_s for picture in window.pictures]
        assert seen[-1] - seen[0] <= 1.75 + 1e-6 and np.all(np.diff(seen) >= 0)
    assert items[-1].dropped == 1
    (left_out,) = {
        each.jump for each in grid_pictures(frames([0.0, 5.0, 5.2], dropped=[1, 1, 1]), lambda f, _: f, GRID)
    }
    assert left_out == "times jump from 0.00 to 5.00 s, 3 frames between were left out"


def test_a_long_stream_holds_one_window_of_pictures():
    alive = set()

    class Picture:
        def __init__(self) -> None:
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    most = 0
    for _ in live_windows(
        grid_pictures(frames(itertools.islice(itertools.count(0, 0.125), 20_000)), lambda f, _: Picture(), GRID),
        WindowGrid(8, 0.25, 2),
    ):
        most = max(most, len(alive))
    assert most <= 12


def test_a_frame_without_a_time_or_a_picture_that_is_none_is_refused(stream):
    with pytest.raises(DataError, match="time is nan"):
        list(stream([(float("nan"), pictures(1)[0])]))
    with pytest.raises(DataError, match="uint8 RGB"):
        list(stream([(0.0, np.zeros((64, 64)))]))


def test_pictures_in_memory_end_when_they_are_told_to(stream):
    stop, events = threading.Event(), []
    for event in stream(zip(itertools.count(0, 0.125), itertools.cycle(pictures(8))), stop=stop):
        events.append(event)
        if event.time_s > 3:
            stop.set()
    assert events[-1].event == "end" and events[-1].note == "stopped"


def test_a_camera_is_a_number():
    assert LiveSource.parse(2) == LiveSource.parse("2") == LiveSource("camera", "/dev/video2")


# ---------------------------------------------------------------------------------------------------- being in time
def feed(classifier, realtime):
    return Feed(LiveSource("file", "x"), classifier.config, WindowGrid(8, 0.25, 2), realtime, None)


def window(start_s):
    return Window(start_s, [LivePicture(start_s + 1, 0.0, 0, 0, "", np.zeros(1))])


def test_what_waits_is_left_out_and_counted_or_waited_for(classifier):
    live, stop = feed(classifier, True), threading.Event()
    for start_s in (0.0, 0.5, 1.0):
        live.put(window(start_s))
    assert live.take(stop).start_s == 1.0 and live.dropped == 4 and not live.waiting
    patient = feed(classifier, False)
    thread = threading.Thread(target=lambda: [patient.put(window(float(place))) for place in range(3)])
    thread.start()
    assert [patient.take(stop).start_s for _ in range(3)] == [0.0, 1.0, 2.0] and patient.dropped == 0
    thread.join(60)


def test_a_sender_in_bursts_makes_no_lag_and_a_slow_reader_does(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = ArrivalClock()
    for burst in range(5):
        now, clock.waited_s = 100.0 + 4 * burst, 4.0
        for place in range(32):  # four seconds of packets at once
            assert clock.lag(4 * burst + place / 8, 2.0) <= 0
            clock.waited_s = 0.0
    lags = []
    for place in range(40):  # each takes 0.2 s to decode, and the next one lies ready
        now, clock.waited_s = 200.0 + 0.2 * place, 0.0 if place else 80.0
        lags.append(clock.lag(20 + place / 8, 2.0))
    assert lags == pytest.approx([place * (0.2 - 0.125) for place in range(40)])
    clock.waited_s = 0.5
    assert clock.lag(25.0, 2.0) == 0  # caught up


def test_behind_the_time_frames_are_left_out_up_to_a_key_frame_in_time(tmp_path):
    class Late(Unhurried):
        def lag(self, time_s: float, pause_s: float) -> float:
            return 5.0 if 2.2 < time_s < 4.1 else 0.0

    path = tmp_path / "video.ts"
    path.write_bytes(encode(64))
    with open_video(path) as (container, stream):
        found = list(LiveFrames(LiveSource.parse(path), container, stream, Late(), 2.0))
    shown = [round(8 * frame.time_s) for frame in found]
    missing = sorted(set(range(64)) - set(shown))
    assert missing == list(range(18, 40)) and found[-1].dropped == 22  # the key frame behind 4.1 s is that at 5 s


def test_a_file_whose_end_comes_too_late_is_not_cut_off(classifier, tmp_path, monkeypatch):
    """What was left out behind the last picture is counted."""

    class Late(PlayClock):
        def lag(self, time_s: float, pause_s: float) -> float:
            return 5.0 if time_s > 3.5 else 0.0

        def due(self, time_s: float) -> float:
            return time.monotonic()

    path = tmp_path / "video.mkv"
    path.write_bytes(encode(64, "matroska"))
    monkeypatch.setattr(live, "PlayClock", Late)
    *shown, left_out = live.read_pictures(LiveSource.parse(path), True, GRID, SIZE)
    assert shown[-1].time_s == 3.375 and left_out == 64 - 29

    class Reader(list):
        dropped, close = left_out, list.clear

    monkeypatch.setattr(live_feed, "LiveReader", lambda *_: Reader(shown))
    with feed(classifier, realtime=False) as found:
        while found.take(threading.Event()) is not None:
            pass
        assert found.dropped == left_out


# ------------------------------------------------------------------------------------------- streams that break or lie
def through_a_pipe(data: bytes) -> LiveSource:
    """A pipe that somebody fills and closes."""
    end, begin = os.pipe()

    def fill() -> None:
        with os.fdopen(begin, "wb") as file:
            file.write(data)

    threading.Thread(target=fill, daemon=True).start()
    return LiveSource("pipe", str(end))


def events_of_pipe(classifier, data: bytes, monkeypatch):
    source = through_a_pipe(data)
    monkeypatch.setattr(LiveSource, "parse", classmethod(lambda cls, text: source))
    try:
        yield from classifier.stream("-", LABELS, minimum_s=0.5, realtime=False)
    finally:
        os.close(int(source.place))


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_a_pipe_is_read_until_it_is_closed_wherever_that_is(classifier, container, monkeypatch):
    data = encode(60, container)
    whole = list(events_of_pipe(classifier, data, monkeypatch))
    assert whole[-1].note == "the standard input has ended" and whole[-1].time_s > 6.5
    part = list(events_of_pipe(classifier, data[: len(data) // 2], monkeypatch))
    assert 2 < part[-1].time_s < 5 and part[-1].event == "end"
    known = [told(event) for event in part if event.has_label]
    assert known == [told(event) for event in whole if event.has_label][: len(known)] and known


def test_times_of_a_stream_that_jump_are_an_event(classifier, monkeypatch):
    data = b"".join(encode(40, times=range(first, first + 40)) for first in (0, 8000, 400))
    events = list(events_of_pipe(classifier, data, monkeypatch))
    jumps = [event for event in events if event.event == "jump"]
    assert len(jumps) == 2 and all("times jump from" in jump.note for jump in jumps)
    assert [jump.time_s for jump in jumps] == pytest.approx([1000, 50], abs=2)  # a key frame is awaited there
    said = {int(event.time_s) for event in events if event.has_label}
    assert said >= {2, 3, 1003, 1004, 53, 54}


def test_a_connection_that_dies_is_made_again(stream):
    data, stop = encode(48), threading.Event()
    cut = {0: len(data) // 2, 1: 0, 2: len(data) // 3}

    def answer(connection, number):
        if number == 3:
            stop.set()
        connection.sendall(data[: cut.get(number, len(data))])

    with server(answer) as address:
        events = list(stream(f"tcp://{address}", realtime=False, stop=stop))
    kinds = [event.event for event in events if not event.has_label]
    assert kinds[:5] == ["open", "lost", "lost", "open", "lost"] and kinds[-1] == "end" and events[-1].note == "stopped"
    lost = next(event for event in events if event.event == "lost")
    assert address in lost.note and "tries again in" in lost.note
    assert any(event.event == "change" for event in events)


def test_it_gives_up_when_told_to(stream):
    data, calls = encode(16), []

    def answer(connection, number):
        calls.append(number)
        connection.sendall(data if number == 0 else b"")

    with server(answer) as address:
        events = stream(f"tcp://{address}", realtime=False, give_up_s=0.0)
        seen = []
        with pytest.raises(DataError, match=address):
            seen.extend(iter(lambda: next(events), None))
    assert len(calls) >= 1


def test_a_camera_that_speaks_rtsp_is_read_and_its_password_is_not_said(stream):
    stop = threading.Event()
    with server(rtsp_camera(40)) as address:
        events = []
        for event in stream(f"rtsp://me:hunter2@{address}/live", realtime=False, stop=stop):
            events.append(event)
            if event.event == "lost":
                stop.set()
    assert [event.event for event in events][:2] == ["open", "change"] and events[-1].event == "end"
    assert events[-2].event == "lost" and events[-2].time_s > 4
    assert not any("hunter2" in event.note for event in events)


def test_what_is_no_video_is_one_sentence(classifier, stream, monkeypatch, tmp_path):
    with pytest.raises(DataError, match="the standard input has no video stream, only audio"):
        list(events_of_pipe(classifier, sound(), monkeypatch))
    with pytest.raises(DataError, match="the standard input cannot be read as a video"):
        list(events_of_pipe(classifier, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", monkeypatch))
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"gone\.mp4 does not exist"):
        list(stream(tmp_path / "gone.mp4"))
    with pytest.raises(DataError, match=r"/dev/video77 cannot be read"):
        list(stream("77"))
    for wrong, said in (("ftp://x/y", "none of rtsp://"), ("tcp://host", "no port"), ("rtsp://", "no host"),
                        ("http://host:port", "no address")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            stream(wrong)
    os.mkfifo(tmp_path / "camera")
    with pytest.raises(ConfigError, match="source=- < .*camera"):
        stream(tmp_path / "camera")
    with pytest.raises(UserError, match="minimum_s=-1"):
        classifier.stream("camera", LABELS, minimum_s=-1)


def test_a_file_that_breaks_off_is_not_taken_for_whole(stream, tmp_path):
    cut = tmp_path / "cut.mkv"
    data = encode(80, "matroska")
    cut.write_bytes(data[: len(data) // 2])
    seen = []
    with pytest.raises(DataError, match=r"cut\.mkv"):
        for event in stream(cut, realtime=False):
            seen.append(event)
    assert seen[-1].event == "end" and "cut.mkv" in seen[-1].note
