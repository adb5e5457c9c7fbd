"""Protects which frames a clip shows and which rank reads it when: silent errors here change every result."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from data_worlds import small_loader

from ace_dist.config import ClipConfig
from ace_dist.data.sampling import (
    ClipRequest,
    TestPlan,
    TrainPlan,
    coinciding_views,
    crop_box,
    permutation,
    scaled_size,
    train_frames,
    view_frames,
    view_starts,
)
from ace_dist.data.segments import Segment, clip_window
from ace_dist.data.shards import ClipRecord
from ace_dist.utils.errors import DataError


def record(start_s, end_s, frames=200, fps=10.0, key="clip", width=80, height=64):
    return ClipRecord(
        key, "train-00000.tar", 0, 1, frames, fps, width, height, start_s, end_s, "v", "o", "train", "", ""
    )


def records(count):
    return [record(0.5, 2.5, 30, key=f"c{i:04d}") for i in range(count)]


def nearest_by_search(record, times):
    """Independent: the stored frame whose time is nearest, by trying all; every frame of a tie is right."""
    stored = np.arange(record.frames) / record.fps
    distance = np.abs(stored[None] - np.asarray(times)[:, None])
    return [set(np.flatnonzero(row <= row.min() + 1e-9).tolist()) for row in distance]


def test_training_window_by_hand():
    # Segment 2 to 4 s, middle 3 s; three frames over 3 s lie at 2, 3 and 4 s: frames 20, 30, 40 at 10 fps.
    assert train_frames(record(2.0, 4.0), ClipConfig(3, 3.0)) == (20, 30, 40)
    # Two frames over 1 s lie a quarter of a second on each side of the middle: 2.75 and 3.25 s at 100 fps.
    assert train_frames(record(2.0, 4.0, fps=100.0, frames=900), ClipConfig(2, 1.0)) == (275, 325)


def test_training_frames_are_the_nearest_stored_ones_clamped_to_the_clip():
    rng = np.random.default_rng()
    for _ in range(200):
        start, length = rng.uniform(0, 4), rng.uniform(0.05, 4)
        clip = ClipConfig(int(rng.integers(1, 33)), float(rng.uniform(0.2, 6)))
        stored = record(start, start + length, int(rng.integers(1, 120)), float(rng.uniform(3, 60)))
        k = np.arange(clip.frames)
        times = start + length / 2 + (k - (clip.frames - 1) / 2) * clip.seconds / clip.frames  # the paper's centring
        for index, right in zip(train_frames(stored, clip), nearest_by_search(stored, times), strict=True):
            assert index in right


def test_views_span_the_segment_from_its_start_to_its_end():
    starts = view_starts(record(1.0, 6.0), ClipConfig(8, 2.0, views=3))
    assert starts == pytest.approx([1.0, 2.5, 4.0])  # a + (L - w) k / 2 with L = 5, w = 2; the last ends at 6
    rng = np.random.default_rng()
    for _ in range(100):
        start, seconds, views = rng.uniform(0, 3), rng.uniform(0.3, 2), int(rng.integers(2, 7))
        end = start + seconds + rng.uniform(0, 4)
        starts = view_starts(record(start, end), ClipConfig(8, seconds, views))
        assert starts[0] == pytest.approx(start) and starts[-1] + seconds == pytest.approx(end)
        assert np.diff(starts) == pytest.approx(np.full(views - 1, (end - start - seconds) / (views - 1)))


def test_views_spaced_as_slowfast_does_begin_k_of_v_parts_along_the_way():
    """SlowFast's and ProcedureVRL's code: start = (L - w) * k / V, so the end of a long action is not seen."""
    clip = ClipConfig(8, 2.0, views=3, view_spacing="slowfast")
    assert view_starts(record(1.0, 7.0), clip) == pytest.approx([1.0, 1.0 + 4 / 3, 1.0 + 8 / 3])
    assert view_starts(record(3.0, 4.0), clip) == [2.5, 2.5, 2.5]  # short: as with the other spacing


def test_segments_give_each_part_of_the_action_one_frame():
    """Four parts of a 4 s action at 10 fps, by hand; in training at random places, other ones each epoch."""
    clip = ClipConfig(4, 1.0, views=2, sampling="segments")
    assert train_frames(record(2.0, 6.0), clip) == (25, 35, 45, 55)
    # View v of 2 lies at (v + 1/2) / 2 of each part: 0.25 and 0.75 s after 2, 3, 4, 5 s; halves round up.
    assert view_frames(record(2.0, 6.0), clip) == [(23, 33, 43, 53), (28, 38, 48, 58)]
    plan = TrainPlan([record(2.0, 6.0)], [0], clip, small_loader(), 1, seed=int(np.random.default_rng().integers(99)))
    shown = [plan.requests(step)[0].frames for step in range(200)]
    for part in range(4):
        drawn = {frames[part] for frames in shown}
        assert {20 + 10 * part, 30 + 10 * part} >= {min(drawn), max(drawn)} and len(drawn) > 8
    window = TrainPlan([record(2.0, 6.0)], [0], ClipConfig(4, 1.0), small_loader(), 1, seed=3)
    parts = TrainPlan([record(2.0, 6.0)], [0], clip, small_loader(), 1, seed=3)
    for one, other in zip(window.requests(7), parts.requests(7), strict=True):  # crops stay those of the seed
        assert (one.short_side, one.crop_x, one.flip) == (other.short_side, other.crop_x, other.flip)


def test_a_short_segment_is_expanded_about_its_middle_and_its_views_coincide():
    clip = ClipConfig(4, 2.0, views=3)
    assert view_starts(record(3.0, 4.0), clip) == [2.5, 2.5, 2.5]
    assert view_frames(record(3.0, 4.0), clip) == [train_frames(record(3.0, 4.0), clip)] * 3
    assert view_starts(record(1.0, 7.0), ClipConfig(4, 2.0, views=1)) == [3.0]  # one view: the middle


def test_coinciding_views_are_counted():
    clip = ClipConfig(4, 2.0, views=3)
    assert coinciding_views([record(3.0, 4.0), record(1.0, 6.0), record(1.0, 3.0), record(2.0, 9.0)], clip) == 2
    assert coinciding_views([record(3.0, 4.0)], ClipConfig(4, 2.0, views=1)) == 0


def test_the_stored_window_covers_training_and_every_view():
    rng = np.random.default_rng()
    for _ in range(100):
        start = rng.uniform(5, 9)
        segment = Segment("s", "", start, start + rng.uniform(0.1, 6), "v", "o", "train")
        clip = ClipConfig(8, rng.uniform(0.3, 4), 3)
        low, high = clip_window(segment, clip.seconds, 0.25)
        starts = [*view_starts(record(segment.start_s, segment.end_s), clip)]
        assert low + 0.25 <= min(*starts, segment.start_s) + 1e-9
        assert high - 0.25 >= max(max(starts) + clip.seconds, segment.end_s) - 1e-9


@pytest.mark.parametrize("world", [2, 3, 6])
def test_the_global_order_does_not_depend_on_the_number_of_ranks(world):
    data, clip, loader = records(17), ClipConfig(4, 2.0), small_loader()
    seed = int(np.random.default_rng().integers(1 << 30))
    alone = TrainPlan(data, range(17), clip, loader, 6, seed)
    ranks = [TrainPlan(data, range(17), clip, loader, 6, seed, rank, world) for rank in range(world)]
    for step in (0, 1, 2, 3, 29, 1000):
        assert alone.requests(step) == [request for plan in ranks for request in plan.requests(step)]


def test_a_step_is_a_pure_function_of_seed_and_step():
    data, clip, loader = records(11), ClipConfig(4, 2.0), small_loader()
    forward = TrainPlan(data, range(11), clip, loader, 4, seed=5)
    expected = {step: forward.requests(step) for step in range(20)}
    again = TrainPlan(data, range(11), clip, loader, 4, seed=5)
    assert all(again.requests(step) == expected[step] for step in (19, 3, 11, 0, 7))  # as after a resume
    other = TrainPlan(data, range(11), clip, loader, 4, seed=6)
    assert any(other.requests(step) != expected[step] for step in range(20))


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (7, 7), (3, 8), (64, 16)])
def test_every_epoch_shows_every_clip_once_and_none_is_dropped(count, batch):
    plan = TrainPlan(records(count), range(count), ClipConfig(4, 2.0), small_loader(), batch, seed=1)
    steps = -(-3 * count // batch)
    stream = [request.record.key for step in range(steps) for request in plan.requests(step)]
    epochs = [stream[i * count : (i + 1) * count] for i in range(3)]
    assert all(len(set(epoch)) == count for epoch in epochs)
    assert plan.steps_per_epoch == math.ceil(count / batch)
    if count > 4:
        assert epochs[0] != epochs[1] != epochs[2]


def test_the_permutation_never_changes_between_versions():
    # Recorded once: a checkpoint of an older numpy or machine must continue with the same clips.
    assert permutation(8, 3, 0).tolist() == [0, 1, 2, 7, 5, 6, 4, 3]
    assert sorted(permutation(1000, 1, 2).tolist()) == list(range(1000))


def test_augmentation_covers_its_ranges_and_differs_between_epochs():
    loader = small_loader(flip=0.3)
    plan = TrainPlan(records(50), range(50), ClipConfig(4, 2.0), loader, 50, seed=9)
    drawn = [request for step in range(40) for request in plan.requests(step)]
    assert {request.short_side for request in drawn} == set(range(48, 81))
    assert abs(np.mean([request.flip for request in drawn]) - 0.3) < 0.05  # five standard deviations of 2000 draws
    for name in ("crop_x", "crop_y"):
        values = np.array([getattr(request, name) for request in drawn])
        assert 0 <= values.min() < 0.01 and 0.99 < values.max() < 1 and abs(values.mean() - 0.5) < 0.035
    places = Counter((r.record.key, r.crop_x) for r in drawn)
    assert max(places.values()) == 1


def test_a_batch_that_ranks_cannot_share_is_an_error_naming_the_setting():
    with pytest.raises(DataError, match=r"training\.batch_size=10 .* 4 ranks"):
        TrainPlan(records(5), range(5), ClipConfig(4, 2.0), small_loader(), 10, 0, rank=1, world=4)
    with pytest.raises(DataError, match=r"no training clip.*dataset\.annotations"):
        TrainPlan([], [], ClipConfig(4, 2.0), small_loader(), 2, 0)


def test_every_view_is_read_exactly_once_over_all_ranks():
    rng = np.random.default_rng()
    for _ in range(30):
        count, world, batch, views = (int(value) for value in rng.integers((1, 1, 1, 1), (20, 9, 8, 5)))
        data = [record(1.0, 6.0, key=f"c{i}") for i in range(count)]
        read, owner = Counter(), {}
        for rank in range(world):
            plan = TestPlan(data, range(count), ClipConfig(4, 2.0, views), small_loader(), batch, rank, world)
            for requests in plan.batches():
                assert 1 <= len(requests) <= batch
                for request in requests:
                    read[request.record.key, request.view] += 1
                    assert owner.setdefault(request.record.key, rank) == rank  # views of a clip stay together
                    assert data[request.label] is request.record
                    assert (request.crop_x, request.crop_y, request.flip) == (0.5, 0.5, False)
                    assert request.short_side == small_loader().test_short_side
        assert read == Counter({(f"c{i}", view): 1 for i in range(count) for view in range(views)})


def test_sizes_and_crops_stay_inside_the_frame():
    assert scaled_size(1080, 1920, 256) == (256, 455)  # 1920 * 256 / 1080 = 455.1
    assert scaled_size(90, 60, 48) == (72, 48)
    rng = np.random.default_rng()
    for _ in range(200):
        height, width, side = (int(value) for value in rng.integers(2, 400, 3))
        crop = int(rng.integers(1, side + 1))
        x, y = rng.choice([0.0, 1.0, rng.uniform(), 1 - 2**-53], 2)
        stored = record(0, 1, width=width, height=height)
        new_height, new_width, top, left = crop_box(ClipRequest(stored, (0,), side, crop, x, y, False, 0, 0))
        assert min(new_height, new_width) == side
        assert 0 <= top <= new_height - crop and 0 <= left <= new_width - crop
        assert abs(new_height * width - new_width * height) <= max(height, width)  # aspect kept, to a rounding
    stored = record(0, 1, width=80, height=64)
    assert crop_box(ClipRequest(stored, (0,), 64, 48, 0.5, 0.5, False, 0, 0)) == (64, 80, 8, 16)  # the centre
