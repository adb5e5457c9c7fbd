"""The long videos of the Timeline page: opened once, then asked for any labels. No page, no server."""

import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ace_dist.segment.embed import EmbeddedVideo, OnPicture, Progress, default_cache, embed_video
from ace_dist.segment.page import Stills, thumbnails
from ace_dist.segment.segmenter import decode, window_similarities
from ace_dist.segment.timeline import Timeline
from ace_dist.segment.windows import WindowGrid, windows_between
from ace_dist.tools.explorer.session import Explorer
from ace_dist.utils.errors import ConfigError, UserError
from ace_dist.utils.pictures import jpeg

LONGEST_VIDEO_S = 2 * 3600.0  # 30 MB of embeddings at two windows a second
KEPT_VIDEOS = 8  # opened ones in memory, of all visitors; the oldest go first
STRIP = 600  # pictures kept of an upload, which is deleted once it was read
ENDINGS = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".wmv")
MOST_OFFERED = 500  # videos of a folder


@dataclass(frozen=True)
class OpenVideo:
    embedded: EmbeddedVideo
    stills: Stills

    @property
    def name(self) -> str:
        return Path(self.embedded.video).name


class Strip:
    """At most `STRIP` pictures of a video, evenly spread, taken while it is read: called for each in order."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s, self.step, self.seen = interval_s, 1, 0
        self.pictures: list[bytes] = []

    def __call__(self, picture_CHW: npt.NDArray[np.uint8]) -> None:
        if self.seen % self.step == 0:
            self.pictures.append(jpeg(np.ascontiguousarray(picture_CHW.transpose(1, 2, 0))))
        self.seen += 1
        if len(self.pictures) > STRIP:
            self.pictures, self.step = self.pictures[::2], self.step * 2

    def at(self, start_s: float, times_s: Sequence[float]) -> list[bytes]:
        places = (int((time_s - start_s) / (self.step * self.interval_s)) for time_s in times_s)
        return [self.pictures[min(max(place, 0), len(self.pictures) - 1)] for place in places]


def offered_videos(folder: str | None) -> dict[str, Path]:
    """Name -> file, of the videos of a folder that the page offers. Raises `ConfigError` when there is none."""
    if folder is None:
        return {}
    if not Path(folder).is_dir():
        raise ConfigError(f"videos={folder} is not a folder; name one that holds long videos, or leave videos= out")
    found = [path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() in ENDINGS and path.is_file()]
    if not found:
        raise ConfigError(f"videos={folder} holds no video ({' '.join(ENDINGS)}); name another folder")
    return {path.name: path for path in found[:MOST_OFFERED]}


class LongVideos:
    """Opened videos by a key that cannot be guessed. `offered`: those that a visitor may choose by name."""

    def __init__(self, explorer: Explorer, offered: Mapping[str, Path]) -> None:
        self.explorer, self.offered = explorer, offered
        self.opened: OrderedDict[str, OpenVideo] = OrderedDict()

    def open_offered(self, name: str, progress: Progress) -> str:
        """The key of a video of this machine, whose embeddings are kept as those of `ace segment` are."""
        path = self.offered.get(name)
        if path is None:
            raise UserError(f"there is no video {name!r}; choose one of the list")
        embedded = self.embed(path, progress, default_cache(), lambda picture: None)
        return self.keep(OpenVideo(embedded, lambda times_s: thumbnails(path, times_s)))

    def open_upload(self, path: str, progress: Progress) -> str:
        """The key of an upload, which is deleted once it was read: its pictures are kept in memory."""
        strip = Strip(WindowGrid.build(self.explorer.config.dataset.clip).interval_s)
        try:
            embedded = self.embed(Path(path), progress, None, strip)
        finally:
            Path(path).unlink(missing_ok=True)
        embedded = replace(embedded, video=Path(path).name)
        return self.keep(OpenVideo(embedded, lambda times_s: strip.at(embedded.start_s, times_s)))

    def embed(self, path: Path, progress: Progress, cache: Path | None, on_picture: OnPicture) -> EmbeddedVideo:
        """Raises `UserError`, without the file's folder, for what cannot be read or is too long."""

        def watched(done_s: float, all_s: float) -> None:
            if max(done_s, all_s) > LONGEST_VIDEO_S:
                raise UserError(
                    f"{path.name} lasts more than {LONGEST_VIDEO_S / 3600:.0f} hours: cut it, or use ace segment, "
                    "which takes any length"
                )
            progress(done_s, all_s)

        model, config = self.explorer.classifier.model, self.explorer.config
        try:
            return embed_video(model, config, path, None, cache, watched, on_picture)
        except UserError as error:
            raise UserError(str(error).replace(str(path), path.name)) from None

    def keep(self, video: OpenVideo) -> str:
        key = secrets.token_urlsafe(16)
        self.opened[key] = video
        while len(self.opened) > KEPT_VIDEOS:
            self.opened.popitem(last=False)
        return key

    def video(self, key: str) -> OpenVideo:
        try:
            self.opened.move_to_end(key)
            return self.opened[key]
        except KeyError:
            raise UserError("this video was let go when others were opened: open it again") from None

    def timeline(self, key: str, words: Mapping[str, Sequence[str]]) -> Timeline:
        """What the video shows, when, among labels with the phrases that vote for each; no video is read.

        Raises `UserError` for labels and phrases that cannot be compared, or are more than fit.
        """
        self.explorer.check_labels([*words])
        self.explorer.check_phrases(words)
        embedded, classifier = self.video(key).embedded, self.explorer.classifier
        phrases = tuple(tuple(group) for group in words.values())
        (cosines,) = window_similarities(classifier.model, [embedded], phrases)
        return decode(embedded, [*words], cosines, classifier.calibration, classifier.temperature)

    def votes(self, key: str, start_s: float, end_s: float, phrases: Sequence[str]) -> dict[str, float]:
        """Phrase -> its mean cosine with the windows between two times."""
        embedded = self.video(key).embedded
        rows = embedded.embeddings[windows_between(start_s, end_s, embedded.start_s, embedded.stride_s)]
        return self.explorer.votes(torch.from_numpy(rows.copy()), phrases)
