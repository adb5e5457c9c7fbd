"""Reads a folder per label, as the rows of a CSV annotation file.

FOLDER/lift lid/take 1.mp4              a clip of "lift lid", whole; its group is its own name
FOLDER/lift_lid/anna/take 1.mp4         the same; its group is anna: a person, a camera, or the recording it is cut from

A label becomes verb and object as `concepts.makers.split_label` splits it. All rows are of the training split:
`dataset.test_groups` says which groups are tested. Hidden files and folders are left out.
"""

from collections.abc import Iterator
from pathlib import Path

from ace_dist.concepts.makers import split_label
from ace_dist.utils.errors import DataError, LabelError
from ace_dist.utils.reading import files_below
from ace_dist.utils.tables import Row


def folder_rows(folder: Path) -> Iterator[tuple[str, Row]]:
    """Where each clip lies and its row, in the order of the paths. Raises `DataError` naming the folder."""
    clips = [file for file in files_below(folder) if file.parent != folder]
    if not clips:
        raise DataError(
            f"dataset.annotations={folder} is a folder with neither a CSV file nor videos in a folder per label, such "
            f"as {folder / 'lift lid' / 'take 1.mp4'}"
        )
    for clip in clips:
        label, *groups, _ = clip.relative_to(folder).parts
        try:
            action = split_label(label)
        except LabelError as error:
            raise DataError(f"dataset.annotations={folder}, folder {label!r}: {error}") from error
        row = {"video": str(clip.relative_to(folder.parent)), "start_s": "", "end_s": "", "verb": action.verb}
        group = "/".join(groups) or clip.stem
        yield str(clip.relative_to(folder)), row | {"object": action.object, "split": "train", "group": group}
