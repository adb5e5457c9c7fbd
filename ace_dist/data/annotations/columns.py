"""Reads CSV files with other people's columns: `dataset.columns` says which of theirs are ours.

A key is one of our columns, or `start_frame`, `end_frame`, `fps` in the place of times: frames that count from 0, as in
Assembly101, at `fps` labels a second; or `label` in the place of verb and object, which `concepts.makers.split_label`
splits. A value is one of the file's columns, or a text with columns in braces; for `fps` a number too:

    {video: video, start_frame: start_frame, end_frame: end_frame, fps: 30, verb: verb_cls, object: noun_cls}
    {video: "videos/{video_id}.MP4", start_s: start_timestamp, end_s: stop_timestamp, verb: verb, object: noun}
    {video: file, start_s: start, end_s: end, label: action}
"""

import math
import re
from collections.abc import Mapping

from ace_dist.concepts.makers import split_label
from ace_dist.config import did_you_mean
from ace_dist.utils.errors import ConfigError, DataError
from ace_dist.utils.tables import Row, check_row, header_name

FRAMES = {"start_frame": "start_s", "end_frame": "end_s"}
LABEL_NAMES = ("label", "labels", "action", "action_label", "activity", "class", "step", "task", "narration")
PLACE = re.compile(r"\{([^{}]*)\}")


def check_columns(columns: Mapping[str, str], ours: tuple[str, ...]) -> None:
    """Raise `ConfigError` for a map that gives no segments; `ours`: the columns that a map may fill."""
    known = (*ours, *FRAMES, "fps", "label")
    for name in columns:
        if name not in known:
            raise ConfigError(f"dataset.columns: {name} is not one of {', '.join(known)}{did_you_mean(name, known)}")
    if "label" in columns and {"verb", "object"} & columns.keys():
        raise ConfigError("dataset.columns has label beside verb or object; keep label, or verb and object")
    needed = ("video", "label") if "label" in columns else ("video", "verb", "object")
    if absent := [name for name in needed if name not in columns]:
        raise ConfigError(f"dataset.columns has no {absent[0]}; name the column of the file that holds it")
    for frame, time in FRAMES.items():
        if frame in columns and time in columns:
            raise ConfigError(f"dataset.columns has {time} and {frame}; keep the one that the file is right about")
    if bool(FRAMES.keys() & columns.keys()) != ("fps" in columns):
        raise ConfigError(
            "dataset.columns: start_frame and end_frame need fps, the labels a second, and fps needs them"
        )


def source_columns(columns: Mapping[str, str]) -> list[str]:
    """The file's columns that a map names, as `parse_table` calls them."""
    found = []
    for name, value in columns.items():
        if name != "fps" or rate(value) is None:
            found += [header_name(place) for place in PLACE.findall(value) or [value]]
    return list(dict.fromkeys(found))


def map_row(row: Row, columns: Mapping[str, str], ours: tuple[str, ...]) -> Row:
    """A row of the file as one of ours; raises `DataError` for a value that is missing or no frame."""
    check_row(row, source_columns(columns))

    def value(name: str) -> str:
        text = columns[name]
        return PLACE.sub(lambda place: row[header_name(place[1])], text) if "{" in text else row[header_name(text)]

    found = dict.fromkeys(ours, "") | {name: value(name) for name in columns if name in ours}
    if "label" in columns:
        action = split_label(value("label"))
        found |= {"verb": action.verb, "object": action.object}
    if "fps" in columns:
        fps = rate(columns["fps"]) or rate(value("fps"))
        if fps is None:
            raise DataError(f"fps={value('fps')!r} is not a number of labels a second above 0")
        for frame, time in FRAMES.items():
            if frame in columns and (text := value(frame)):
                if not re.fullmatch(r"[0-9]{1,12}", text):
                    raise DataError(f"{columns[frame]}={text!r} is not the number of a frame")
                found[time] = repr(int(text) / fps)
    return found


def label_hint(header: str) -> str:
    """What to set for a file with one column for verb and object, by its first line; empty for another file."""
    names = [name.strip(" \"'\r\n") for name in re.split(r"[,;\t]", header)]
    label = next((name for name in names if header_name(name) in LABEL_NAMES), None)
    if label is None or {"verb", "object"} & {header_name(name) for name in names}:
        return ""
    return (
        f"; if {label!r} holds verb and object, set "
        f"dataset.columns='{{video: COLUMN, start_s: COLUMN, end_s: COLUMN, label: {label}}}'"
    )


def rate(text: str) -> float | None:
    """A number above 0, else None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None
