"""Reads the files of a finished run folder; an error names the file and the launcher that writes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
import numpy.typing as npt
from pydantic import Field
from typing_extensions import TypedDict

from ace_dist.data.run_inputs import check_is_run
from ace_dist.evaluate.metrics import accuracy, harmonic_mean, macro_f1
from ace_dist.models.weights import TRAINED
from ace_dist.utils.console import say
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import read_log
from ace_dist.utils.reading import Score, Text, Whole, check_shape, read_object, read_text, read_yaml
from ace_dist.utils.secrets import redact, redacted

TRAINING_FILES = ("config.yaml", "environment.json", "metrics.jsonl")
BEFORE = "before"  # folder in a run: the results of its weights from before training
TOLERANCE = 0.051  # percentage points: results.json may be rounded to one decimal


class Scores(TypedDict):
    accuracy: Score
    f1: Score


class Robustness(TypedDict):
    """Scores over label sets, of which there is one at least."""

    runs: Annotated[list[Scores], Field(min_length=1)]
    accuracy_mean: Score
    accuracy_std: Score
    f1_mean: Score
    f1_std: Score


class BiasCurve(TypedDict):
    area: Score
    best_hm: Score
    best_bias: Score
    bias: list[Score]
    base: list[Score]
    novel: list[Score]


class Together(TypedDict):
    """Scores among all classes."""

    base: Scores
    novel: Scores
    hm: Scores
    curve: BiasCurve | None


class Interval(TypedDict):
    """Of an accuracy, in percent: its two ends."""

    accuracy: Annotated[list[Score], Field(min_length=2, max_length=2)]


class Intervals(TypedDict):
    method: Text
    base: NotRequired[Interval | None]
    novel: NotRequired[Interval | None]
    srt: NotRequired[Interval | None]


class Means(TypedDict):
    accuracy_mean: Score
    f1_mean: Score


class Chance(TypedDict):
    """What guessing scores."""

    base: NotRequired[Scores | None]
    novel: NotRequired[Scores | None]
    hm: NotRequired[Scores | None]
    srt: NotRequired[Means | None]


class Results(TypedDict):
    """`results.json`, as far as it is read."""

    method: Text
    dataset: Text
    fold: Whole | None
    seed: Whole
    base: Scores | None
    novel: Scores | None
    hm: Scores | None
    srt: Robustness | None
    srt_base: Robustness | None
    gzsl: Together | None
    chance: Chance | None
    interval: Intervals | None
    notes: list[Text]


class Guesses(TypedDict):
    """An entry of `predictions.json`: a guess a clip, as indices of classes."""

    classes: list[Text]
    ids: list[Text]
    labels: list[Whole]
    predictions: list[Whole]


class Predictions(TypedDict):
    """`predictions.json`."""

    base: dict[str, Any] | None
    novel: dict[str, Any] | None
    srt: list[dict[str, Any]]
    srt_base: NotRequired[list[dict[str, Any]]]
    gzsl: NotRequired[dict[str, dict[str, Any]] | None]
    groups: NotRequired[dict[Text, Text]]


class Environment(TypedDict):
    """`environment.json`, as far as the report shows it by name."""

    command: Text
    hardware: Any


@dataclass(frozen=True)
class ConceptSpace:
    """Unit text embeddings [S, D] of every phrase before and after fine-tuning; `base` [S]: of a base action."""

    before: npt.NDArray[np.float64]
    after: npt.NDArray[np.float64]
    phrases: tuple[str, ...]
    actions: tuple[str, ...]
    base: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Run:
    folder: Path
    tested: Path  # the folder of its results
    output: Path  # where its page and figures go, beside the results that they show
    results: dict[str, Any]
    environment: dict[str, Any]
    config: str
    base: dict[str, Any] | None  # entries of predictions.json; None when the test split shows no such action
    novel: dict[str, Any] | None
    srt: list[dict[str, Any]]
    srt_base: list[dict[str, Any]]
    gzsl: dict[str, Any] | None  # entries of both kinds of clips among all classes
    groups: dict[str, str]  # of the tested clips by their ids; empty for runs of before
    space: ConceptSpace
    metrics: list[dict[str, Any]]  # by step


def read_run(folder: Path, output: Path | None = None) -> Run:
    """Read and check a run folder, with the results in `output` where there are some (`ace evaluate output=`).

    Raises `RunError` naming the first file that is missing or does not fit.
    """
    output = output or folder
    tested = output if (output / "results.json").is_file() else folder
    config, environment = run_file(folder, "config.yaml"), read_run_object(folder, "environment.json")
    check_shape(environment, Environment, str(folder / "environment.json"), RunError)
    metrics, results = read_metrics(folder), read_results(tested)
    predictions = read_predictions(tested)
    base, novel, srt = predictions["base"], predictions["novel"], predictions["srt"]
    srt_base, gzsl = predictions.get("srt_base", []), predictions.get("gzsl")  # runs of before have none of these
    groups = predictions.get("groups", {})
    space = read_space(tested)
    shown = redact(read_text(config, RunError))  # somebody else's run may hold what ours does not
    run = Run(
        folder,
        tested,
        output,
        results,
        redacted(environment),
        shown,
        base,
        novel,
        srt,
        srt_base,
        gzsl,
        groups,
        space,
        metrics,
    )
    scorer = (read_yaml(config, RunError).get("evaluation") or {}).get("scorer")
    if scorer != "chance":  # whose results are expectations, not of the guesses
        check_same_evaluation(run)
    return run


def read_predictions(folder: Path) -> dict[str, Any]:
    """`predictions.json`, whose every entry belongs together. Raises `UserError` when it does not."""
    path = folder / "predictions.json"
    predictions = read_run_object(folder, path.name)
    check_shape(predictions, Predictions, str(path), RunError)
    parts = {name: predictions[name] for name in ("base", "novel")}
    parts |= {f"gzsl.{name}": part for name, part in (predictions.get("gzsl") or {}).items()}
    for name in ("srt", "srt_base"):  # runs of before lack the second
        parts |= {f"{name}[{i}]": part for i, part in enumerate(predictions.get(name, []))}
    for name, part in parts.items():
        if part is not None:
            check_predictions(part, f"{path}: {name}")
    return predictions


def read_results(folder: Path) -> dict[str, Any]:
    """Read `results.json`, with every score that the table shows; each part but the first four names may be null.

    Runs of before have no `srt_base`, `gzsl`, `chance` and `interval`: these are null then.
    """
    later = dict.fromkeys(("srt_base", "gzsl", "chance", "interval"))
    results = {**later, "notes": [], **read_run_object(folder, "results.json")}
    check_shape(results, Results, str(folder / "results.json"), RunError)
    return results


def check_predictions(part: Any, where: str) -> None:
    """Raises `UserError` when the lists of an entry of `predictions.json` do not belong together."""
    check_shape(part, Guesses, where, RunError)
    ids, labels, guesses = part["ids"], part["labels"], part["predictions"]
    if not len(ids) == len(labels) == len(guesses):
        raise RunError(f"{where}: {len(ids)} ids, {len(labels)} labels, {len(guesses)} predictions")
    if len(set(ids)) < len(ids):
        raise RunError(f"{where}: a sample id occurs twice, so it would count twice")
    macro_f1(labels, guesses, len(part["classes"]))  # refuses indices outside the classes


def check_same_evaluation(run: Run) -> None:
    """The scores of results.json must be those of predictions.json, or the page would show two evaluations as one."""
    again = f"run {writer(run.folder, 'results.json')} again"
    parts = {"base": (run.results["base"], run.base), "novel": (run.results["novel"], run.novel)}
    for name, (scores, part) in parts.items():
        if (part is None) != (scores is None):
            raise RunError(f"{run.folder}: only one of results.json and predictions.json has {name}; {again}")
    for name, predicted in (("srt", run.srt), ("srt_base", run.srt_base)):
        rows = run.results[name]["runs"] if run.results[name] is not None else []
        if len(rows) != len(predicted):
            words = f"results.json has {len(rows)} runs of {name}, predictions.json {len(predicted)}"
            raise RunError(f"{run.folder}: {words}; {again}")
        parts |= {f"{name}.runs[{i}]": pair for i, pair in enumerate(zip(rows, predicted, strict=True))}
    if (run.gzsl is None) != (run.results["gzsl"] is None):
        raise RunError(f"{run.folder}: only one of results.json and predictions.json has gzsl; {again}")
    parts |= {f"gzsl.{name}": (run.results["gzsl"][name], part) for name, part in (run.gzsl or {}).items()}
    for name, (scores, part) in parts.items():
        if part is None:
            continue
        for metric, function in (("accuracy", accuracy), ("f1", macro_f1)):
            value = function(part["labels"], part["predictions"])
            if abs(value - scores[metric]) > TOLERANCE:
                raise RunError(
                    f"{run.folder}: results.json says {name}.{metric} = {scores[metric]:.2f}, predictions.json gives "
                    f"{value:.2f}: the two files are of different evaluations; {again}"
                )
    for prefix, scores in (("", run.results), ("gzsl.", run.results["gzsl"] or {"hm": None})):
        for metric, said in (scores["hm"] or {}).items():
            mean = harmonic_mean(scores["base"][metric], scores["novel"][metric])
            if abs(mean - said) > TOLERANCE:
                raise RunError(
                    f"{run.folder}: results.json says {prefix}hm.{metric} = {said:.2f}, but the harmonic mean of its "
                    f"base and novel scores is {mean:.2f}; {again}"
                )


def read_space(folder: Path) -> ConceptSpace:
    path = run_file(folder, "concept_space.npz")
    again = f"run {writer(folder, path.name)} again"
    try:
        with np.load(path, allow_pickle=False) as archive:
            file = dict(archive)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); {again}") from error
    base = "seen" if "seen" in file else "base"  # its name in files of the version before
    if missing := [name for name in ("before", "after", "phrases", "actions", base) if name not in file]:
        raise RunError(f"{path}: {', '.join(missing)} missing; {again}")
    before, after = (np.asarray(file[name], np.float64) for name in ("before", "after"))
    phrases, actions = (tuple(map(str, file[name])) for name in ("phrases", "actions"))
    space = ConceptSpace(before, after, phrases, actions, np.asarray(file[base], np.bool_))
    if before.shape != after.shape or not len(before) == len(phrases) == len(actions) == len(space.base) > 0:
        raise RunError(
            f"{path}: before {before.shape}, after {after.shape}, {len(phrases)} phrases, {len(actions)} actions and "
            f"{len(space.base)} base flags do not belong together; {again}"
        )
    return space


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` by step; numbers of a step that was logged twice are the later ones.

    Damaged lines are left out, with a line that says so.
    """
    path = run_file(folder, "metrics.jsonl")
    rows, damaged = read_log(path)
    if damaged:
        say(f"{path}: left out, as damaged: line {', '.join(map(str, damaged))}")
    steps: dict[int, dict[str, Any]] = {}
    for row in rows:
        steps[row["step"]] = {**steps.get(row["step"], {}), **row}
    return [steps[step] for step in sorted(steps)]


def read_run_object(folder: Path, name: str) -> dict[str, Any]:
    path = run_file(folder, name)
    return read_object(path, RunError, f"; {writer(folder, name)} writes it")


def run_file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        check_is_run(folder)
        raise RunError(f"{path} is missing; {writer(folder, name)} writes it")
    return path


def writer(folder: Path, name: str) -> str:
    folder = folder.parent if folder.name == BEFORE else folder
    finished = (folder / "model" / TRAINED).is_file()  # without weights there is nothing to evaluate
    return f"ace evaluate run={folder}" if finished and name not in TRAINING_FILES else "ace train"
