"""What the readers of annotated video files share: decoding a segment's frames, its folder and its classes."""

from collections.abc import Sequence
from pathlib import Path

from ace_dist.concepts import ClassTable, load_class_table
from ace_dist.config import DatasetConfig, resolve_path
from ace_dist.data.build.container import Source
from ace_dist.data.build.decode import promised_span, read_window
from ace_dist.data.segments import Failure, RawClip, Reader, Segment
from ace_dist.utils.errors import DataError


class VideoReader(Reader):
    """Segments that lie in video files, which are opened by `read` only, in parallel by the shard builder.

    `fps` and `short_side` (0: as the file) are applied while decoding, which keeps long full-HD segments small.
    """

    opens_files = True

    def __init__(
        self,
        segments: Sequence[Segment],
        fps: float | None = None,
        short_side: int = 0,
        notes: Sequence[str] = (),
        rejected: Sequence[Failure] = (),
    ) -> None:
        self.listed, self.fps, self.short_side = list(segments), fps, short_side
        self.notes, self.rejected = notes, rejected

    def segments(self) -> list[Segment]:
        return list(self.listed)

    def video(self, segment: Segment) -> Source:
        return segment.video

    def read(self, segment: Segment, start_s: float, end_s: float) -> RawClip:
        return read_window(self.video(segment), start_s, end_s, fps=self.fps, short_side=self.short_side)

    def span(self, segment: Segment) -> tuple[float, float]:
        """As the file says; one that does not say is read to its end."""
        first_s, end_s = promised_span(self.video(segment))
        return (first_s, end_s) if end_s else super().span(segment)


def data_root(dataset: DatasetConfig, source: str) -> Path:
    """The data set's folder. Raises `DataError` saying what should lie in it when it is not there."""
    if not dataset.root:
        raise DataError(f"dataset={dataset.name} needs dataset.root=FOLDER: {source}")
    root = resolve_path(dataset.root)
    if not root.is_dir():
        raise DataError(f"dataset.root={root} is not a folder: {source}")
    return root


def class_table(dataset: DatasetConfig) -> ClassTable | None:
    return load_class_table(resolve_path(dataset.classes)) if dataset.classes else None
