"""Windows lie where clips of the run would lie, share their pictures, and are the same when a video is continued."""

import math

import pytest

from ace_dist.config import ClipConfig
from ace_dist.segment.windows import WindowGrid, windows_between
from ace_dist.utils.errors import ConfigError


def expected(grid: WindowGrid, pictures: int) -> list[list[int]]:
    """Pictures nearest to the sampling times about the middle of each window's stretch, clamped to the video."""
    found = []
    for window in range(math.ceil(pictures / grid.step)):
        middle = (window + 0.5) * grid.stride_s
        times = [middle + (i - (grid.frames - 1) / 2) * grid.interval_s for i in range(grid.frames)]
        places = [round((time - grid.first_s) / grid.interval_s) for time in times]
        found.append([min(max(place, 0), pictures - 1) for place in places])
    return found


@pytest.mark.parametrize("frames, seconds, stride_s", [(8, 2.0, None), (8, 2.0, 0.25), (5, 1.0, 0.4), (3, 1.5, 1.5)])
@pytest.mark.parametrize("pictures", [1, 2, 7, 30])
def test_windows_lie_about_the_middle_of_their_stretch(frames, seconds, stride_s, pictures):
    grid = WindowGrid.build(ClipConfig(frames=frames, seconds=seconds), stride_s)
    assert list(grid.windows(range(pictures))) == expected(grid, pictures)


@pytest.mark.parametrize("step", [1, 2, 3, 6])
@pytest.mark.parametrize("first", [0, 1, 3, 5])
def test_a_continued_video_has_the_same_windows(step, first):
    grid = WindowGrid(frames=6, interval_s=0.25, step=step)
    whole = list(grid.windows(range(40)))
    assert list(grid.windows(range(grid.first_picture(first), 40), first)) == whole[first:]


def test_a_stretch_has_the_windows_that_stand_for_it():
    """From 10 s on a window every half second; a stretch that is shorter than one has the one that it lies in."""
    assert windows_between(11.0, 12.5, 10.0, 0.5) == slice(2, 5)
    assert windows_between(11.0, 11.1, 10.0, 0.5) == slice(2, 3)


def test_an_impossible_stride_is_named():
    for stride_s in (-1.0, 2.5, math.nan):
        with pytest.raises(ConfigError, match=f"stride_s={stride_s} must lie above 0 and not above 2"):
            WindowGrid.build(ClipConfig(seconds=2.0), stride_s)
    assert list(WindowGrid.build(ClipConfig()).windows([])) == []
