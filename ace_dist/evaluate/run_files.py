"""Reading a finished run directory for the report, with an error that names the file and the launcher that makes it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_dist.evaluate.metrics import accuracy, macro_f1
from ace_dist.utils.errors import RunError

_MADE_BY = {
    "config.yaml": "launchers/train.py",
    "environment.json": "launchers/train.py",
    "metrics.jsonl": "launchers/train.py",
    "results.json": "launchers/evaluate.py run={run}",
    "predictions.json": "launchers/evaluate.py run={run}",
    "concept_space.npz": "launchers/evaluate.py run={run}",
}
_TOLERANCE = 0.051  # percent points: results.json may be rounded to one decimal


@dataclass(frozen=True)
class Predictions:
    """One test run over N samples and the K labels `classes`."""

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ConceptSpace:
    """Unit text embeddings [S, D] of every phrase, before and after fine-tuning."""

    before: npt.NDArray[np.float64]
    after: npt.NDArray[np.float64]
    phrases: tuple[str, ...]
    actions: tuple[str, ...]
    seen: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Run:
    """All that the report shows of one run."""

    folder: Path
    results: dict[str, Any]
    environment: dict[str, Any]
    command: str
    config: str
    base: Predictions | None  # None when the test split shows no such action, as in results.json
    novel: Predictions | None
    srt: tuple[Predictions, ...]
    space: ConceptSpace
    metrics: tuple[dict[str, Any], ...]  # by step; a step logged twice (resumed run) counts once, the later one


def read_run(folder: Path) -> Run:
    """Read and check a run directory. Raises `RunError` naming the first file that is missing or does not fit."""
    for name in _MADE_BY:
        _existing(folder, name)
    environment, results = _read_json(folder, "environment.json"), read_results(folder)
    predictions = _read_json(folder, "predictions.json")
    _require(environment, ("command", "hardware"), folder / "environment.json")
    _require(predictions, ("base", "novel", "srt"), folder / "predictions.json")
    where = folder / "predictions.json"
    run = Run(
        folder=folder,
        results=results,
        environment=environment,
        command=_command(environment["command"]),
        config=_existing(folder, "config.yaml").read_text(encoding="utf-8"),
        base=_predictions(predictions["base"], f"{where}: base") if predictions["base"] is not None else None,
        novel=_predictions(predictions["novel"], f"{where}: novel") if predictions["novel"] is not None else None,
        srt=tuple(_predictions(part, f"{where}: srt[{index}]") for index, part in enumerate(predictions["srt"])),
        space=read_space(folder),
        metrics=_read_metrics(folder),
    )
    _check_same_evaluation(run)
    return run


def read_results(folder: Path) -> dict[str, Any]:
    """Read `results.json`, with every score that the table shows; `base`, `novel`, `hm`, `srt` may be null."""
    path = folder / "results.json"
    results = _read_json(folder, "results.json")
    _require(results, ("method", "dataset", "fold", "seed", "base", "novel", "hm", "srt"), path)
    for part in ("base", "novel", "hm"):
        if results[part] is not None:
            _require(results[part], ("accuracy", "f1"), path, part)
    if results["srt"] is not None:
        _check_srt(results["srt"], path)
    return results


def _check_srt(srt: Any, path: Path) -> None:
    _require(srt, ("runs", "accuracy_mean", "accuracy_std", "f1_mean", "f1_std"), path, "srt")
    for index, row in enumerate(srt["runs"]):
        _require(row, ("accuracy", "f1"), path, f"srt.runs[{index}]")
    if not srt["runs"]:
        raise RunError(f"{path}: srt.runs is empty; the Synonym Robustness Test needs at least one run")


def _predictions(part: Any, where: str) -> Predictions:
    _require(part, ("classes", "ids", "labels", "predictions"), Path(where))
    labels, guesses = np.asarray(part["labels"], np.int64), np.asarray(part["predictions"], np.int64)
    if not len(part["ids"]) == len(labels) == len(guesses):
        raise RunError(f"{where}: {len(part['ids'])} ids, {len(labels)} labels, {len(guesses)} predictions")
    if len(set(part["ids"])) < len(part["ids"]):
        raise RunError(f"{where}: a sample id occurs twice, so it would count twice")
    macro_f1(labels, guesses, len(part["classes"]))  # refuses indices outside the classes
    return Predictions(tuple(part["classes"]), tuple(part["ids"]), labels, guesses)


def _check_same_evaluation(run: Run) -> None:
    """The scores of results.json must be those of predictions.json, or the page would show two evaluations as one."""
    if run.results["method"] == "random":
        return  # results.json holds what guessing is expected to score, predictions.json one draw of guesses
    stated: list[tuple[str, Mapping[str, float], Predictions]] = []
    for name, found_part in (("base", run.base), ("novel", run.novel)):
        if (found_part is None) != (run.results[name] is None):
            raise RunError(
                f"{run.folder}: only one of results.json and predictions.json has {name}; {_again(run.folder)}"
            )
        if found_part is not None:
            stated.append((name, run.results[name], found_part))
    rows = run.results["srt"]["runs"] if run.results["srt"] is not None else []
    if len(rows) != len(run.srt):
        raise RunError(
            f"{run.folder}: results.json has {len(rows)} SRT runs, predictions.json {len(run.srt)}; "
            f"{_again(run.folder)}"
        )
    stated += [(f"srt.runs[{i}]", row, part) for i, (row, part) in enumerate(zip(rows, run.srt, strict=True))]
    for name, scores, part in stated:
        found = {"accuracy": accuracy(part.labels, part.predictions), "f1": macro_f1(part.labels, part.predictions)}
        for metric, value in found.items():
            if abs(value - scores[metric]) > _TOLERANCE:
                raise RunError(
                    f"{run.folder}: results.json says {name}.{metric} = {scores[metric]:.2f}, predictions.json gives "
                    f"{value:.2f}: the two files are of different evaluations; {_again(run.folder)}"
                )


def read_space(folder: Path) -> ConceptSpace:
    """Read `concept_space.npz`."""
    path = _existing(folder, "concept_space.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            _require(file, ("before", "after", "phrases", "actions", "seen"), path)
            before, after = (np.asarray(file[name], np.float64) for name in ("before", "after"))
            phrases, actions = (tuple(str(text) for text in file[name]) for name in ("phrases", "actions"))
            seen = np.asarray(file["seen"], np.bool_)
    except (OSError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} cannot be read ({error}); {_again(folder)}") from error
    if before.shape != after.shape or not len(before) == len(phrases) == len(actions) == len(seen) > 0:
        raise RunError(
            f"{path}: before {before.shape}, after {after.shape}, {len(phrases)} phrases, {len(actions)} actions and "
            f"{len(seen)} seen flags do not belong together; {_again(folder)}"
        )
    return ConceptSpace(before, after, phrases, actions, seen)


def _read_metrics(folder: Path) -> tuple[dict[str, Any], ...]:
    path = _existing(folder, "metrics.jsonl")
    steps: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RunError(f"{path}, line {number} is not JSON ({error})") from error
        _require(row, ("step",), path, f"line {number}")
        steps[int(row["step"])] = {**steps.get(int(row["step"]), {}), **row}
    return tuple(steps[step] for step in sorted(steps))


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = _existing(folder, name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is not JSON ({error}); {_maker(folder, name)} writes it") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} must hold one JSON object, found {type(content).__name__}")
    return content


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise RunError(f"{path} is missing; {_maker(folder, name)} writes it")
    return path


def _require(content: Any, names: tuple[str, ...], path: Path, part: str = "") -> None:
    where = f"{path}: {part}" if part else str(path)
    if not isinstance(content, Mapping):
        raise RunError(f"{where}: expected an object with {', '.join(names)}, found {type(content).__name__}")
    missing = [name for name in names if name not in content]
    if missing:
        raise RunError(f"{where}: {', '.join(missing)} missing, found {', '.join(map(str, content))}")


def _command(command: Any) -> str:
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command)


def _maker(folder: Path, name: str) -> str:
    return _MADE_BY[name].format(run=folder)


def _again(folder: Path) -> str:
    return f"run {_maker(folder, 'results.json')} again"
