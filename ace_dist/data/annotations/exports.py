"""Reads what annotation tools export, as the rows of a CSV annotation file.

.eaf    ELAN: the tier "actions", or the only one that has times
.xml    CVAT for video 1.1: the visible stretches of each track; CVAT for images 1.1: runs of frames with one tag
.json   Label Studio: timeline labels (frames, 24 a second unless data.frame_rate says otherwise) or labels with start
        and end (seconds); VIA 3: temporal segments

A label becomes verb and object as `concepts.makers.split_label` splits it. All rows are of the training split, and the
group is the video's name: `dataset.test_groups` says which videos are tested. Videos are looked for beside the file, by
their names.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse
from xml.etree import ElementTree  # nosec B405: declarations of entities are refused before anything is parsed

from ace_dist.concepts.makers import split_label
from ace_dist.data.annotations.frames import video_clock
from ace_dist.data.build.isolation import LostError, run_alone
from ace_dist.utils.errors import DataError, LabelError
from ace_dist.utils.reading import read_json, read_text
from ace_dist.utils.tables import Row

ENDINGS = (".eaf", ".xml", ".json")
ACTIONS_TIER = "actions"
LABEL_STUDIO_FPS = 24.0  # by which a <Video> without frameRate counts frames, whatever the file's own rate


@dataclass(frozen=True)
class Span:
    """A labelled stretch in seconds, or in frames: at `fps` a second, else those of its video. `origin`: its place."""

    video: str
    start: float
    end: float
    label: str
    origin: str
    in_frames: bool = False
    fps: float | None = None
    fps_assumed: bool = False


def is_export(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS


def export_rows(path: Path, timeout_s: float) -> Iterator[tuple[str, Row]]:
    """Where each annotation stands and its row, in the file's order. Raises `DataError` naming the file.

    `timeout_s`: seconds that asking a video for its rate may take, 0: any.
    """
    clocks: dict[str, tuple[float, float]] = {}
    for span in read_spans(path):
        start_s, end_s = span.start, span.end
        if span.in_frames:
            if span.fps is None and span.video not in clocks:
                clocks[span.video] = stated_clock(path, span, timeout_s)
            fps, first_s = (span.fps, 0.0) if span.fps else clocks[span.video]
            start_s, end_s = first_s + span.start / fps, first_s + span.end / fps
        try:
            action = split_label(span.label)
        except LabelError as error:
            raise DataError(f"{path}, {span.origin}: {error}") from error
        row = {"video": span.video, "start_s": f"{start_s:.3f}", "end_s": f"{end_s:.3f}", "verb": action.verb}
        yield span.origin, row | {"object": action.object, "split": "train", "group": Path(span.video).stem}


def export_notes(path: Path) -> list[str]:
    """What a file leaves open. Raises `DataError` as `export_rows` does."""
    if not any(span.fps_assumed for span in read_spans(path)):
        return []
    return [
        f"note: {path} counts frames and does not say how many a second has: {LABEL_STUDIO_FPS:g}, Label Studio's own "
        "default, is taken. Where its <Video> has another frameRate, give each task that number as data.frame_rate"
    ]


def stated_clock(path: Path, span: Span, timeout_s: float) -> tuple[float, float]:
    """Frames a second of a span's video, which lies beside the file, and when its first one is shown.

    Raises `DataError` when it cannot be read.
    """
    video = path.parent / span.video
    if not video.is_file():
        raise DataError(f"{path}, {span.origin}: {span.video} does not exist beside it; put its videos there")
    try:
        fps, _, first_s = run_alone(timeout_s, video_clock, video)
        return fps, first_s
    except LostError as error:
        raise DataError(f"{path}, {span.origin}: {span.video} cannot be read: {error}") from error


def read_spans(path: Path) -> list[Span]:
    is_json = path.suffix.lower() == ".json"
    try:
        spans = json_spans(read_json(path, DataError)) if is_json else xml_spans(read_text(path, DataError))
    except (ElementTree.ParseError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        tools = "ELAN (.eaf), CVAT (.xml), Label Studio or VIA 3 (.json)"
        raise DataError(f"{path} is no export of {tools}: {error}") from error
    if not spans:
        raise DataError(f"{path} holds no labelled stretch of time")
    return spans


def xml_spans(text: str) -> list[Span]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares entities, which no such export does")
    root = ElementTree.fromstring(text)  # nosec B314: see above
    readers: Mapping[str, Callable[[ElementTree.Element], list[Span]]] = {
        "ANNOTATION_DOCUMENT": elan_spans,
        "annotations": cvat_spans,
    }
    if root.tag not in readers:
        raise ValueError(f"its root is <{root.tag}>")
    return readers[root.tag](root)


def elan_spans(root: ElementTree.Element) -> list[Span]:
    """EAF_Annotation_Format_3.0: time slots in milliseconds, annotations that name two of them."""
    media = root.find("HEADER/MEDIA_DESCRIPTOR")
    if media is None:
        raise ValueError("it names no video (MEDIA_DESCRIPTOR)")
    url = media.get("RELATIVE_MEDIA_URL") or media.get("MEDIA_URL") or ""
    video, origin_ms = file_name(url), float(media.get("TIME_ORIGIN") or 0)
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    tiers = {
        tier.get("TIER_ID") or "": tier
        for tier in root.iter("TIER")
        if tier.find(".//ALIGNABLE_ANNOTATION") is not None
    }
    if not tiers:
        return []
    if len(tiers) > 1 and ACTIONS_TIER not in tiers:
        raise ValueError(f"it has tiers {', '.join(tiers)}; rename the one of the actions to {ACTIONS_TIER!r}")
    tier = tiers[ACTIONS_TIER] if ACTIONS_TIER in tiers else next(iter(tiers.values()))
    spans = []
    for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
        name = annotation.get("ANNOTATION_ID") or "?"
        begin, end = (slots.get(annotation.get(f"TIME_SLOT_REF{number}")) for number in (1, 2))
        if begin is None or end is None:
            raise ValueError(f"annotation {name} has no time; align it in ELAN")
        label = annotation.findtext("ANNOTATION_VALUE") or ""
        start_s, end_s = ((float(value) + origin_ms) / 1000 for value in (begin, end))
        spans.append(Span(video, start_s, end_s, label, f"annotation {name}"))
    return spans


def cvat_spans(root: ElementTree.Element) -> list[Span]:
    """XML format 1.1 (docs.cvat.ai/docs/dataset_management/formats/format-cvat).

    Frames are those of the file, whatever a task's `start_frame`; `step` is the distance between those that it shows.
    """
    sources = {source.text or "" for source in root.iterfind(".//meta//source")}
    if len(sources) > 1:
        raise ValueError(
            f"it holds several videos ({', '.join(sorted(sources))}); export each task of the project alone"
        )
    video = next(iter(sources), "") or root.findtext(".//meta//name") or ""
    step = 1
    for part in (root.findtext(".//meta//frame_filter") or "").split():
        step = int(part.removeprefix("step=")) if part.startswith("step=") else step
    stretches = [*track_stretches(root, step), *tag_stretches(root, step)]
    return [
        Span(video, begin, end, label, f"frame {begin}", in_frames=True)
        for label, begin, end in sorted(stretches, key=lambda stretch: stretch[1])
    ]


def track_stretches(root: ElementTree.Element, step: int) -> Iterator[tuple[str, int, int]]:
    """Label, first frame, and frame after the last, of every visible stretch of a track."""
    for track in root.iter("track"):
        shapes = sorted((int(shape.attrib["frame"]), shape.get("outside") == "1") for shape in track)
        begin: int | None = None
        for frame, outside in shapes:
            if outside and begin is not None:
                yield track.attrib["label"], begin, frame
                begin = None
            elif not outside and begin is None:
                begin = frame
        if begin is not None:
            yield track.attrib["label"], begin, shapes[-1][0] + step


def tag_stretches(root: ElementTree.Element, step: int) -> Iterator[tuple[str, int, int]]:
    tags = sorted(
        (tag.attrib["label"], int(image.attrib["id"])) for image in root.iter("image") for tag in image.iter("tag")
    )
    for label, group in groupby(tags, key=lambda tag: tag[0]):
        frames = [frame for _, frame in group]
        begin = frames[0]
        for here, following in zip(frames, [*frames[1:], None], strict=True):
            if following != here + step:
                yield label, begin, here + step
                begin = following or 0


def json_spans(content: Any) -> list[Span]:
    if isinstance(content, dict) and "metadata" in content and "file" in content:
        return via_spans(content)
    if isinstance(content, list) and all(isinstance(task, dict) and "data" in task for task in content):
        return [span for number, task in enumerate(content, start=1) for span in label_studio_spans(task, number)]
    raise ValueError("neither a list of tasks with data, nor an object with file and metadata")


def label_studio_spans(task: Mapping[str, Any], number: int) -> Iterator[Span]:
    """Of the last annotation of a task, else of its prediction.

    Frames count from 1, at the frameRate of its <Video> tag. No export holds it: `data.frame_rate`, else the default.
    """
    data = task["data"]
    video = file_name(str(task.get("file_upload") or data.get("video") or next(iter(data.values()))))
    fps = float(data.get("frame_rate") or LABEL_STUDIO_FPS)
    answers = [answer for answer in task.get("annotations") or [] if not answer.get("was_cancelled")]
    for answer in [*(task.get("predictions") or [])[:1], *answers][-1:]:
        for place, result in enumerate(answer["result"], start=1):
            value, origin = result["value"], f"task {number}, result {place}"
            if result.get("type") == "timelinelabels":
                for label in value["timelinelabels"]:
                    for part in value["ranges"]:
                        begin, end = float(part["start"]) - 1, float(part["end"])
                        yield Span(video, max(begin, 0.0), end, label, origin, True, fps, "frame_rate" not in data)
            elif "start" in value and "end" in value and "labels" in value:
                for label in value["labels"]:
                    yield Span(video, float(value["start"]), float(value["end"]), label, origin)


def via_spans(content: Mapping[str, Any]) -> list[Span]:
    """VIA 3's project (robots.ox.ac.uk/~vgg/software/via): `z` holds two times in seconds, `av` attribute -> value."""
    files = {fid: file_name(file.get("src") or file["fname"]) for fid, file in content["file"].items()}
    views = {vid: view["fid_list"][0] for vid, view in content.get("view", {}).items()}
    spans = []
    for name, entry in content["metadata"].items():
        if len(entry.get("z", [])) != 2 or entry.get("xy"):
            continue  # a still frame or a region
        for attribute, value in entry["av"].items():
            options = content.get("attribute", {}).get(attribute, {}).get("options", {})
            label = str(options.get(str(value), value))
            video = files[str(views.get(entry["vid"], entry["vid"]))]
            spans.append(Span(video, float(entry["z"][0]), float(entry["z"][1]), label, f"segment {name}"))
    return sorted(spans, key=lambda span: (span.video, span.start))


def file_name(address: str) -> str:
    """`clip 1.mp4` of a path or an address; Label Studio's local files stand behind `?d=`."""
    path = address.removeprefix("file://")
    if address.startswith(("http://", "https://", "/data/")):  # of Label Studio's server
        parts = urlparse(address)
        path = parts.query.removeprefix("d=") if parts.query.startswith("d=") else parts.path or address
    return PurePosixPath(unquote(path).replace("\\", "/")).name
