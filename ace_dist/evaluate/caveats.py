"""What a score does not show: chance, the interval of an accuracy, and sentences on results that say little.

They stand in `results.json` (`chance`, `interval`, `notes`), under the table of the console and in the report.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ace_dist.config import TrainingConfig
from ace_dist.evaluate.metrics import accuracy_interval, harmonic_mean, random_baseline

FEW_STEPS = 200
NEARLY_ALL = 0.9  # share of the clips that one label got
NAMED = 5  # classes that a sentence names
METHOD = "95 %, Wilson's, clips of one group counted together (design effect)"
WHAT = {"base": "base", "novel": "novel", "srt": "SRT", "srt_base": "SRT of base actions"}

Entry = Mapping[str, Any]  # of predictions.json
Scores = dict[str, Any]


def chance_scores(predictions: Mapping[str, Any]) -> Scores:
    """The scores of guessing each label alike, in the shape of results.json; its SRT has no spread."""
    base, novel = (guessing(predictions[part]) if predictions[part] else None for part in ("base", "novel"))
    spread = {"accuracy_std": 0.0, "f1_std": 0.0}
    srt, srt_base = (
        {f"{metric}_mean": value for metric, value in scores.items()} | spread if scores else None
        for scores in (novel, base)
    )
    gzsl: Scores | None = None
    if together := predictions.get("gzsl"):
        parts = {name: guessing(entry) for name, entry in together.items()}
        gzsl = {**parts, "hm": mean_of_both(parts["base"], parts["novel"]), "curve": None}
    hm = mean_of_both(base, novel) if base and novel else None
    return {"base": base, "novel": novel, "hm": hm, "srt": srt, "srt_base": srt_base, "gzsl": gzsl}


def guessing(entry: Entry) -> dict[str, float]:
    """What guessing is expected to score on the labels of an entry, in percent, whatever was guessed there."""
    return random_baseline(entry["labels"], len(entry["classes"]))


def mean_of_both(base: Mapping[str, float], novel: Mapping[str, float]) -> dict[str, float]:
    return {name: harmonic_mean(base[name], novel[name]) for name in base}


def intervals(predictions: Mapping[str, Any], groups: Mapping[str, str]) -> Scores:
    """Intervals of the accuracies; `groups`: the group of each clip by its id. Null where there is no score."""
    found: Scores = {"method": METHOD}
    for part in WHAT:
        runs = predicted_runs(predictions, part)
        found[part] = interval(runs, groups) if runs else None
    together = predictions["gzsl"]
    found["gzsl"] = {name: interval([entry], groups) for name, entry in together.items()} if together else None
    return found


def predicted_runs(predictions: Mapping[str, Any], part: str) -> list[Entry]:
    """The entries of `part`, of which the SRT has one a label set."""
    found = predictions[part]
    return [found] if isinstance(found, Mapping) else list(found or [])


def interval(runs: Sequence[Entry], groups: Mapping[str, str]) -> Scores:
    """Interval of the mean accuracy of runs over the same clips, and what it rests on."""
    hits = np.mean([np.equal(run["labels"], run["predictions"]) for run in runs], axis=0)
    of_clips = [groups[name] for name in runs[0]["ids"]]
    low, high = accuracy_interval(hits, of_clips)
    return {"accuracy": [low, high], "clips": len(hits), "groups": len(set(of_clips))}


# ----------------------------------------------------------------------------------------------- sentences on a result
def result_notes(predictions: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that keeps the scores from meaning what they seem to. `results` has its intervals."""
    notes: list[str | None] = []
    for part in ("base", "novel"):
        if entry := predictions[part]:
            notes += [untested_classes(part, entry), one_label(part, entry), one_group(part, results["interval"][part])]
    for part in WHAT:
        notes.append(not_above_chance(part, predicted_runs(predictions, part), results))
    notes += [empty_spread(part, predicted_runs(predictions, part), results) for part in ("srt", "srt_base")]
    return [note for note in notes if note]


def not_above_chance(part: str, runs: Sequence[Entry], results: Mapping[str, Any]) -> str | None:
    """Whether the interval reaches down to guessing, or to always naming the label that most clips have."""
    if not runs or len(runs[0]["classes"]) < 2:
        return None
    labels, score = runs[0]["labels"], results[part]
    accuracy = score["accuracy"] if "accuracy" in score else score["accuracy_mean"]
    low, high = results["interval"][part]["accuracy"]
    guess, commonest = 100.0 / len(runs[0]["classes"]), 100.0 * Counter(labels).most_common(1)[0][1] / len(labels)
    if low > max(guess, commonest):
        return None
    other = f", always the commonest label {commonest:.1f}" if commonest > guess else ""
    return (
        f"{WHAT[part]} is not shown to be above chance: {accuracy:.1f} %, interval {low:.1f} to {high:.1f}, guessing "
        f"{guess:.1f}{other}, from {len(labels)} test clip{'s' * (len(labels) != 1)}"
    )


def one_label(part: str, entry: Entry) -> str | None:
    """Whether there is one label alone to choose, or nearly all clips got the same one though they differ."""
    if len(entry["classes"]) == 1:
        return (
            f"{part} has one action alone ({entry['classes'][0]}), so every guess is right and the score says nothing"
        )
    if not is_collapsed(entry):
        return None
    guesses: list[int] = entry["predictions"]
    label, count = Counter(guesses).most_common(1)[0]
    return (
        f"one label got {count} of {len(entry['labels'])} {part} test clips: {entry['classes'][label]}; the model "
        f"hardly tells these actions apart, and more steps, more training clips or another training.lr_video may help"
    )


def is_collapsed(entry: Entry) -> bool:
    """Whether one label got nearly all clips, and more of them than any label truly has."""
    got, have = (Counter(entry[name]).most_common(1)[0][1] for name in ("predictions", "labels"))
    return len(entry["classes"]) > 1 and got >= NEARLY_ALL * len(entry["labels"]) and got > have


def empty_spread(part: str, runs: Sequence[Entry], results: Mapping[str, Any]) -> str | None:
    """Whether the spread over the label sets is 0 because the model gives one label to all clips whatever its words."""
    if len(runs) < 2 or results[part]["accuracy_std"] >= 0.05 or not all(map(is_collapsed, runs)):
        return None
    return f"the spread of 0 of {WHAT[part]} is no robustness: under each label set one label got nearly all clips"


def untested_classes(part: str, entry: Entry) -> str | None:
    """Whether a class has no test clip."""
    names = [name for index, name in enumerate(entry["classes"]) if index not in set(entry["labels"])]
    if not names:
        return None
    return (
        f"{len(names)} of {len(entry['classes'])} {part} actions have no test clip ({shortened(names)}), so the scores "
        f"do not cover them; give them some by dataset.test_groups, or the split column of dataset.annotations"
    )


def one_group(part: str, rests_on: Mapping[str, Any]) -> str | None:
    if rests_on["groups"] > 1 or rests_on["clips"] < 2:
        return None
    return f"all {part} test clips are of one group, so the interval does not say how it is with another one"


def shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


# --------------------------------------------------------------------------------------------- sentences on a training
def enough_epochs(epochs_a_step: float) -> int:
    """Epochs that make `FEW_STEPS` steps; `epochs_a_step`: batch over clips."""
    return math.ceil(FEW_STEPS * epochs_a_step)


def few_steps(settings: TrainingConfig, steps: int, epochs_a_step: float) -> str | None:
    """What to set where a run of `steps` is too short to judge its method by; `epochs_a_step`: batch over clips."""
    if not 0 < steps < FEW_STEPS:
        return None
    epochs, changes = enough_epochs(epochs_a_step), []
    if settings.max_steps is not None and settings.max_steps < FEW_STEPS:
        changes.append("training.max_steps=null")
    if settings.epochs < epochs:
        changes.append(f"training.epochs={epochs}")
    if not changes:
        changes.append("training.early_stopping_patience=0")
    return (
        f"{steps} step{'s are' if steps != 1 else ' is'} few: below {FEW_STEPS} a score tells more of the length of "
        f"the training than of the method; set {' '.join(changes)}"
    )
