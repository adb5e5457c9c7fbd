"""Writes timelines as files that other programs read; the ending of a file's name chooses its form.

.json   all of it: segments, probabilities of every window, deviations
.csv    an annotation file of `dataset.kind=csv`: corrected, it is training data
.vtt    WebVTT subtitles        .srt    SubRip subtitles
.eaf    ELAN, a tier "actions"  .labelstudio.json   Label Studio, for a <TimelineLabels name="actions" toName="video">
.html   one page that works offline: see `page`
.mp4    the video with its labels written on it: see `captions`
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree  # nosec B405: writes alone

from ace_dist.concepts.makers import split_label
from ace_dist.data.annotations.exports import LABEL_STUDIO_FPS
from ace_dist.segment.captions import write_captioned
from ace_dist.segment.page import to_html
from ace_dist.segment.timeline import Timeline
from ace_dist.utils.errors import ConfigError
from ace_dist.utils.files import check_is_no_input, write_text
from ace_dist.utils.tables import csv_text


def write_timeline(timeline: Timeline, path: Path) -> None:
    """Write the form that the name's ending asks for.

    Raises `ConfigError` for an ending that is not known, and for the video itself.
    """
    form = check_output(path)
    check_is_no_input(path, timeline.video)
    path.parent.mkdir(parents=True, exist_ok=True)
    if form is None:
        write_captioned(timeline, path)
    else:
        write_text(path, form(timeline))


def check_output(path: Path) -> Callable[[Timeline], str] | None:
    """What makes the text of such a file; None for a video."""
    for ending, form in FORMS.items():
        if path.name.lower().endswith(ending):
            return form
    raise ConfigError(f"output={path}: a timeline is written as one of {', '.join(FORMS)}, chosen by the ending")


def as_object(timeline: Timeline) -> dict[str, Any]:
    """`segments.json`: times in seconds of the video's clock, scores from 0 to 1."""
    return {
        "video": timeline.video,
        "duration_s": round(timeline.end_s - timeline.start_s, 3),
        "labels": list(timeline.labels),
        "segments": [
            {
                "start_s": part.start_s,
                "end_s": part.end_s,
                "label": part.label,
                "score": round(part.score, 4),
                "cosine": round(part.cosine, 4),
                "runner_up": part.runner_up,
            }
            for part in timeline
        ],
        "deviations": None if timeline.deviations is None else [vars(each) for each in timeline.deviations],
        "windows": {
            "start_s": timeline.start_s,
            "stride_s": timeline.stride_s,
            "columns": [*timeline.labels, None],
            "probabilities": timeline.probabilities.round(4).tolist(),
        },
    }


def to_json(timeline: Timeline) -> str:
    return json.dumps(as_object(timeline), indent=1, ensure_ascii=False) + "\n"


def to_csv(timeline: Timeline) -> str:
    """Rows of `dataset.annotations`, which fit behind those of another such file."""
    rows: list[list[object]] = [["video", "start_s", "end_s", "verb", "object", "split", "group"]]
    video = Path(timeline.video).resolve()
    for part in timeline.actions:
        action = split_label(part.label or "")
        times = [f"{part.start_s:.3f}", f"{part.end_s:.3f}"]
        rows.append([video, *times, action.verb, action.object, "train", video.stem])
    return csv_text(rows)


def to_vtt(timeline: Timeline) -> str:
    return "WEBVTT\n\n" + "\n".join(
        f"{stamp(part.start_s, '.')} --> {stamp(part.end_s, '.')}\n{escaped(part.label or '')}\n"
        for part in timeline.actions
    )


def escaped(text: str) -> str:
    """Text of a WebVTT cue: one line, without tags."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_srt(timeline: Timeline) -> str:
    return "\n".join(
        f"{number}\n{stamp(part.start_s, ',')} --> {stamp(part.end_s, ',')}\n{part.label}\n"
        for number, part in enumerate(timeline.actions, start=1)
    )


def stamp(time_s: float, point: str) -> str:
    """`01:02:03.450`."""
    milliseconds = round(1000 * max(time_s, 0.0))
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def to_eaf(timeline: Timeline) -> str:
    """ELAN's annotation format 3.0 (mpi.nl/tools/elan/EAF_Annotation_Format_3.0_and_ELAN.pdf); times in ms."""
    video = Path(timeline.video).resolve()
    root = ElementTree.Element(
        "ANNOTATION_DOCUMENT",
        AUTHOR="",
        DATE=datetime.now(UTC).isoformat(timespec="seconds"),
        FORMAT="3.0",
        VERSION="3.0",
    )
    header = ElementTree.SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    media = {"MEDIA_URL": video.as_uri(), "MIME_TYPE": "video/mp4", "RELATIVE_MEDIA_URL": f"./{quote(video.name)}"}
    ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", media)
    order = ElementTree.SubElement(root, "TIME_ORDER")
    tier = ElementTree.SubElement(root, "TIER", LINGUISTIC_TYPE_REF="default-lt", TIER_ID="actions")
    for number, part in enumerate(timeline.actions, start=1):
        slots = [f"ts{2 * number - 1}", f"ts{2 * number}"]
        for slot, time_s in zip(slots, (part.start_s, part.end_s), strict=True):
            ElementTree.SubElement(order, "TIME_SLOT", TIME_SLOT_ID=slot, TIME_VALUE=str(round(1000 * time_s)))
        names = {"ANNOTATION_ID": f"a{number}", "TIME_SLOT_REF1": slots[0], "TIME_SLOT_REF2": slots[1]}
        annotation = ElementTree.SubElement(ElementTree.SubElement(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION", names)
        ElementTree.SubElement(annotation, "ANNOTATION_VALUE").text = part.label
    kind = {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true"}
    ElementTree.SubElement(root, "LINGUISTIC_TYPE", kind)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def to_label_studio(timeline: Timeline) -> str:
    """A task with a prediction, to import; frames count from 1 at the tag's default rate (labelstud.io/tags/video)."""
    results = [
        {
            "from_name": "actions",
            "to_name": "video",
            "type": "timelinelabels",
            "value": {
                "ranges": [
                    {
                        "start": round(part.start_s * LABEL_STUDIO_FPS) + 1,
                        "end": round(part.end_s * LABEL_STUDIO_FPS),
                    }
                ],
                "timelinelabels": [part.label],
            },
        }
        for part in timeline.actions
    ]
    data = {"video": quote(Path(timeline.video).name), "frame_rate": LABEL_STUDIO_FPS}
    task = {"data": data, "predictions": [{"model_version": "ace-dist", "result": results}]}
    return json.dumps([task], indent=1, ensure_ascii=False) + "\n"


FORMS: dict[str, Callable[[Timeline], str] | None] = {  # the first ending that fits
    ".labelstudio.json": to_label_studio,
    ".json": to_json,
    ".csv": to_csv,
    ".vtt": to_vtt,
    ".srt": to_srt,
    ".eaf": to_eaf,
    ".html": to_html,
    ".mp4": None,
}
