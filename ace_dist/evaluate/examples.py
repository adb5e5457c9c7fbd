"""Clips to look at: one clip under several wordings, confident mistakes, clips on which words disagree, and frames.

Each is chosen by a rule that the page states, never by hand.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ace_dist.data.build.container import ClipInMemory
from ace_dist.data.build.decode import read_window
from ace_dist.data.run_inputs import run_config
from ace_dist.data.shards import ClipRecord, ShardFiles, ShardSet
from ace_dist.utils.errors import RunError, UserError
from ace_dist.utils.pictures import data_uri, jpeg

SHOWN_LABELS = 3  # votes of a clip that are shown, and the true label's
WORDINGS = 3
EXAMPLES = 6
SIDE, SMALL_SIDE = 120, 64  # pixels of a frame, and of the one of each class, both square as they are shown
JPEG_QUALITY = 72

Entry = Mapping[str, Any]  # of predictions.json


@dataclass(frozen=True)
class Vote:
    label: str
    probability: float  # percent
    is_true: bool


@dataclass(frozen=True)
class Answer:
    """What a model says of a clip under one label set: the true action in its words, and the largest votes."""

    wording: str
    right: bool
    votes: tuple[Vote, ...]


@dataclass(frozen=True)
class Example:
    clip: str
    action: str
    frames: tuple[str, ...]  # data URIs
    answers: dict[str, tuple[Answer, ...]]  # by model
    remark: str = ""


@dataclass
class Frames:
    """Frames of stored clips as data URIs; none, and the reason, where the clips are gone."""

    records: Mapping[str, ClipRecord] = field(default_factory=dict)
    files: ShardFiles | None = None
    problem: str = ""

    @classmethod
    def of_run(cls, run: Path, shards: str | None) -> Self:
        try:
            folder = run_config(run, shards).dataset.shards
            found = ShardSet.read(folder)
        except UserError as error:
            return cls(problem=f"No frames are shown: {error}")
        return cls({record.key: record for record in found.records}, ShardFiles(found.folder))

    def of_clip(self, key: str, count: int, side: int = SIDE) -> tuple[str, ...]:
        """`count` frames of a clip's action, evenly spread over it; none where the clip cannot be read."""
        record = self.records.get(key)
        if record is None or self.files is None:
            return ()
        length = record.segment_end_s - record.segment_start_s
        times = [record.segment_start_s + length * (index + 0.5) / count for index in range(count)]
        try:
            clip = ClipInMemory(self.files.read(record))
            pictures = (frame_at(clip, record, time, side) for time in times)
            return tuple(data_uri("image/jpeg", jpeg(picture, JPEG_QUALITY)) for picture in pictures)
        except UserError as error:
            self.problem = f"Some frames are not shown: {error}"
            return ()


def frame_at(clip: ClipInMemory, record: ClipRecord, time_s: float, side: int) -> npt.NDArray[np.uint8]:
    """The middle square [side, side, 3] of the frame at a time, smaller where the clip is."""
    start = min(time_s, (record.frames - 1) / record.fps)
    window = read_window(clip, start, start + 1 / record.fps, fps=record.fps, short_side=side)
    frame = next(iter(window.frames))
    short = min(frame.shape[:2])
    top, left = ((length - short) // 2 for length in frame.shape[:2])
    return np.ascontiguousarray(frame[top : top + short, left : left + short])


def probabilities(entry: Entry) -> npt.NDArray[np.float64]:
    """[N, K] in percent. Raises `RunError` when they do not belong to the clips and classes of the entry."""
    try:
        values = 100 * np.asarray(entry["probabilities"], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"predictions.json holds no probabilities that can be read ({error})") from error
    if values.shape != (len(entry["ids"]), len(entry["classes"])) or not np.isfinite(values).all():
        raise RunError(f"predictions.json: probabilities {values.shape} of {len(entry['ids'])} clips")
    return values


def answer(entry: Entry, row: int, values: npt.NDArray[np.float64]) -> Answer:
    """Of clip `row`, whose probabilities are `values` [K]."""
    classes, true, guess = entry["classes"], entry["labels"][row], entry["predictions"][row]
    first = [guess, *(int(k) for k in np.argsort(-values, kind="stable") if k != guess)][:SHOWN_LABELS]
    kept = first if true in first else [*first[: SHOWN_LABELS - 1], true]
    votes = tuple(Vote(classes[k], float(values[k]), k == true) for k in kept)
    return Answer(classes[true], guess == true, votes)


def hits(entries: Sequence[Entry]) -> npt.NDArray[np.bool_]:
    """Whether each clip is named right under each label set, [R, N]."""
    return np.array([np.equal(entry["labels"], entry["predictions"]) for entry in entries])


# ------------------------------------------------------------------------------------------ one clip, several wordings
def wordings_example(models: Mapping[str, Sequence[Entry]], frames: Frames) -> tuple[Example, str] | None:
    """One clip under the first `WORDINGS` label sets by every model, and a sentence: the rule, and how often it holds.

    `models`: name -> the label sets' entries over the same clips, ours first.
    """
    ours, others = next(iter(models.items())), list(models.items())[1:]
    if len(ours[1]) < WORDINGS:
        return None
    entries = {name: sets[:WORDINGS] for name, sets in models.items()}
    ids = list(ours[1][0]["ids"])
    right = {name: np.all(hits(sets)[:, same_clips(ids, sets[0])], axis=0) for name, sets in entries.items()}
    differ = right[ours[0]].copy()
    for name, _ in others:
        differ &= ~right[name]
    wanted = np.flatnonzero(differ if differ.any() else right[ours[0]])
    first = int(min(wanted, key=lambda row: ids[row])) if len(wanted) else int(np.argmin(ids))
    answers = {}
    for name, sets in entries.items():
        row = int(same_clips(ids, sets[0])[first])
        answers[name] = tuple(answer(entry, row, probabilities(entry)[row]) for entry in sets)
    entry = ours[1][0]
    action = entry["classes"][entry["labels"][first]]
    text = f"Right under all {WORDINGS} wordings: "
    text += ", ".join(f"{name} {int(row.sum())}" for name, row in right.items()) + f" of {len(ids)} clips. "
    rule = f"that {ours[0]} names right under all {WORDINGS} wordings"
    if others:
        reverse = int((~right[ours[0]] & np.any([right[name] for name, _ in others], axis=0)).sum())
        rule += f" and {' and '.join(name for name, _ in others)} not"
        text += f"{int(differ.sum())} are right with {ours[0]} alone, {reverse} with another and not with {ours[0]}. "
    if differ.any():
        text += f"Shown is the first clip, by name, {rule}. "
    else:
        text += f"There is no clip {rule}; shown is the first one, by name, that {ours[0]} names right, if any. "
    text += f"The wordings are the first {WORDINGS} label sets of the test."
    return Example(ids[first], action, frames.of_clip(ids[first], 8), answers), text


def same_clips(ids: Sequence[str], entry: Entry) -> npt.NDArray[np.int64]:
    """Rows of an entry in the order of `ids`. Raises `RunError` when it is of other clips."""
    place = {name: row for row, name in enumerate(entry["ids"])}
    if set(place) != set(ids):
        raise RunError("the runs were tested on different clips, so that they cannot be compared; leave one out")
    return np.array([place[name] for name in ids], np.int64)


# ----------------------------------------------------------------------------------------------- mistakes, disagreement
def confident_mistakes(entries: Iterable[Entry], model: str, frames: Frames) -> list[Example]:
    """The wrong answers with the largest probability, one of each pair of labels."""
    found: dict[tuple[str, str], tuple[float, str, Answer]] = {}  # by true and named label
    for entry in entries:
        classes, values = entry["classes"], probabilities(entry)
        for row in np.flatnonzero(~hits([entry])[0]):
            true, named = entry["labels"][row], entry["predictions"][row]
            one = (-float(values[row, named]), str(entry["ids"][row]), answer(entry, int(row), values[row]))
            pair = classes[true], classes[named]
            found[pair] = min(found.get(pair, one), one, key=lambda mistake: mistake[:2])
    largest = sorted(found.items(), key=lambda item: item[1][:2])[:EXAMPLES]
    return [Example(clip, pair[0], frames.of_clip(clip, 4), {model: (said,)}) for pair, (_, clip, said) in largest]


def disagreements(sets: Sequence[Entry], model: str, frames: Frames) -> list[Example]:
    """The clips with the most different answers over the label sets, of equal ones those nearest to half right."""
    if len(sets) < 2:
        return []
    right = hits(sets)
    guesses = np.array([entry["predictions"] for entry in sets])
    kinds = [len(set(column)) for column in guesses.T]
    order = sorted(range(len(kinds)), key=lambda n: (-kinds[n], abs(right[:, n].mean() - 0.5), sets[0]["ids"][n]))
    values, examples = [probabilities(entry) for entry in sets], []
    for row in [n for n in order if kinds[n] > 1][:EXAMPLES]:
        one = [
            int(np.argmax(right[:, row])),
            int(np.argmin(right[:, row])),
        ]  # a set that has it right, one that has not
        answers = tuple(answer(sets[k], row, values[k][row]) for k in dict.fromkeys(one))
        remark = f"right under {int(right[:, row].sum())} of {len(sets)} label sets, {kinds[row]} different answers"
        action = sets[0]["classes"][sets[0]["labels"][row]]
        clip = str(sets[0]["ids"][row])
        examples.append(Example(clip, action, frames.of_clip(clip, 4), {model: answers}, remark))
    return examples
