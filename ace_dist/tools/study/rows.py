"""The numbers of a study: a sweep's finished runs as rows of `runs.csv`, their means, paired differences.

Everything is in percent. A pair is two runs of one seed: the same clips in the same order, another method.
"""

import csv
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from scipy.stats import t as student_t

from ace_dist.cluster.sweep import Sweep
from ace_dist.config import load_config
from ace_dist.evaluate.metrics import harmonic_mean
from ace_dist.evaluate.run_files import read_results
from ace_dist.tools.study.tables import Table
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import read_log, write_text
from ace_dist.utils.reading import read_object
from ace_dist.utils.tables import csv_text, unguarded

SPREAD = ("accuracy_mean", "accuracy_std", "f1_mean", "f1_std")
PARTS = (
    *((part, metric) for part in ("base", "novel") for metric in ("accuracy", "f1")),
    *(("srt", metric) for metric in SPREAD),
)
LATER_PARTS = (  # empty in rows of before
    *(("srt_base", metric) for metric in SPREAD),
    *((f"gzsl.{part}", metric) for part in ("base", "novel") for metric in ("accuracy", "f1")),
    ("gzsl.curve", "area"),
)
SCORES = {  # columns of runs.csv -> place in results.json
    f"{part}_{metric}".replace("gzsl.", "gzsl_").replace("curve_", ""): (part, metric)
    for part, metric in (*PARTS, *LATER_PARTS)
}
FIELDS = ("experiment", "method", "seed", *SCORES)
EARLIER_FIELDS = FIELDS[: -len(LATER_PARTS)]
ORIGIN = ("dataset", "sweep")  # last columns of runs.csv; files of before do not have them
LEVEL = 0.95
Line = TypeVar("Line")  # of a CSV file
Finished = dict[str, list[tuple[Path, dict[str, Any]]]]  # method -> folders of its runs and their results


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep: what it is called, its seed, where its results would be. Folds are runs of the same name."""

    method: str
    seed: int
    folder: Path
    dataset: str = ""


@dataclass(frozen=True)
class StudyRow:
    """A line of `runs.csv`; a score is `None` when the test split has no such actions.

    `dataset`, `sweep`: what its runs are of; empty in rows of before.
    """

    experiment: str
    method: str
    seed: int
    scores: Mapping[str, float | None]
    dataset: str = ""
    sweep: str = ""


@dataclass(frozen=True)
class Study:
    """What a sweep gave: rows, the runs they are of, and, in words, the rest."""

    rows: list[StudyRow]
    finished: Finished
    missing: list[str]
    history: list[str]  # hardware, commits and duration of the runs


@dataclass(frozen=True)
class Mean:
    """Mean and sample standard deviation (n-1; `None` out of one value) of n values."""

    mean: float
    deviation: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.deviation is None else f"{self.mean:.1f} ± {self.deviation:.1f}"


@dataclass(frozen=True)
class Difference:
    """Mean of n paired differences and its interval; no interval out of one pair."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.1f} (one seed)"
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


# ---------------------------------------------------------------------------------------------------- sweep to rows
def planned_runs(sweep: Sweep, table: Table | None = None) -> list[PlannedRun]:
    """Every run of a sweep, called as its table's row or its swept settings."""
    keys = {row.name: row.key for row in table.rows} if table else {}
    planned, names = [], dict[tuple[str, ...], str]()  # of the data set, by the settings that choose it
    for run in sweep.runs.values():
        words = [
            keys[value] if key == "row" and table else value if key == "method" else f"{key}={value}"
            for key, value in run.line().items()
        ]
        seed = int(run.settings["seed"]) if "seed" in run.settings else load_config(run.overrides).seed
        choice = tuple(word for word in run.overrides if word.startswith(("experiment=", "dataset=", "dataset.name=")))
        if choice not in names:
            names[choice] = load_config(run.overrides).dataset.name
        planned.append(PlannedRun(" ".join(words) or "all runs", seed, sweep.folder / run.id, names[choice]))
    return planned


def gather(planned: Iterable[PlannedRun], experiment: str) -> Study:
    """One row for each method and seed whose runs are all finished: the mean over its folds, as the paper has it.

    A run without `results.json` is in `missing`. Raises `RunError` for a damaged file, or when none is finished.
    """
    groups: dict[tuple[str, int], list[Path]] = {}
    for run in planned:
        groups.setdefault((run.method, run.seed), []).append(run.folder)
    study = Study([], {}, [], [])
    for (method, seed), folders in groups.items():
        absent = [folder.name for folder in folders if not (folder / "results.json").is_file()]
        if absent:
            study.missing.append(f"{method}, seed {seed}: {', '.join(absent)} not finished")
            continue
        results = [read_results(folder) for folder in folders]
        means = {name: mean_score(results, part, metric) for name, (part, metric) in SCORES.items()}
        scores = {name: None if mean is None else mean.mean for name, mean in means.items()}
        dataset, sweep = str(results[0]["dataset"]), folders[0].parent.name
        study.rows.append(StudyRow(experiment, method, seed, scores, dataset, sweep))
        study.finished.setdefault(method, []).extend(zip(folders, results, strict=True))
    if not study.rows:
        raise RunError(f"no run is finished: {'; '.join(study.missing[:4]) or 'the sweep has no runs'}")
    everywhere = [folder for runs in study.finished.values() for folder, _ in runs]
    study.history.extend(dict.fromkeys(map(commit_and_hardware, everywhere)))
    logs = [rows for folder in everywhere if (rows := read_log(folder / "metrics.jsonl")[0])]
    seconds = [float(rows[-1]["elapsed_s"]) for rows in logs]  # from the start or the last continuation
    if seconds:
        study.history.append(f"training {min(seconds):.0f} to {max(seconds):.0f} s a run, evaluation not counted")
    return study


def commit_and_hardware(folder: Path) -> str:
    path = folder / "environment.json"
    if not path.is_file():
        return f"{folder.name}: no environment.json, so commit and hardware are unknown"
    facts = read_object(path, RunError)
    git, hardware = facts["git"], facts["hardware"]
    commit = f"commit {git['commit'][:10]}" if git["commit"] else f"ace-dist {facts['versions']['ace-dist']}"
    commit += " with uncommitted changes" if git["modified"] else ""
    gpus = f", {', '.join(hardware['gpus'])}" if "gpus" in hardware else ""
    return f"{commit}, {facts['world_size']} rank(s), {hardware['cpu']} ({hardware['cores']} cores{gpus})"


# --------------------------------------------------------------------------------------------------------- runs.csv
def read_rows(path: Path) -> list[StudyRow]:
    """The lines of `runs.csv`; none without such a file. Raises `RunError` for other columns or bad numbers."""

    def parse(line: Mapping[str, str]) -> StudyRow:
        experiment, method = unguarded(line["experiment"]), unguarded(line["method"])
        origin = (unguarded(line.get(name, "")) for name in ORIGIN)
        return StudyRow(experiment, method, int(line["seed"]), parse_scores(line, SCORES), *origin)

    return read_lines(path, ((*FIELDS, *ORIGIN), FIELDS, EARLIER_FIELDS), parse)


def read_lines(
    path: Path, headers: Sequence[tuple[str, ...]], parse: Callable[[Mapping[str, str]], Line]
) -> list[Line]:
    """What `parse` makes of each line of a CSV file with one of the `headers`; nothing without such a file.

    A line that is too short has empty cells at its end. Raises `RunError` for another header, and naming the line for
    one of which `parse` raises `ValueError`.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restval="")
        if tuple(reader.fieldnames or ()) not in headers:
            raise RunError(f"{path}: expected the columns {','.join(headers[0])}, found {reader.fieldnames}")
        try:
            return [parse(line) for line in reader]
        except ValueError as error:
            raise RunError(f"{path}, line {reader.line_num}: {error}") from error


def parse_scores(line: Mapping[str, str], names: Iterable[str]) -> dict[str, float | None]:
    """A number for each name, `None` where the cell is empty or an earlier file has no such column."""
    return {name: float(cell) if (cell := line.get(name)) else None for name in names}


def score_cells(values: Iterable[float | None]) -> list[str]:
    """With four decimals; empty for `None`."""
    return ["" if value is None else f"{value:.4f}" for value in values]


def write_lines(path: Path, header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, csv_text([header, *lines]))


def by_method(rows: Iterable[StudyRow]) -> dict[str, list[StudyRow]]:
    methods: dict[str, list[StudyRow]] = {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)
    return methods


def scored(scores: Iterable[str], methods: Mapping[str, Sequence[StudyRow]]) -> list[str]:
    """Those of `scores` that some row has: runs of before lack the later ones."""
    return [s for s in scores if any(row.scores[s] is not None for rows in methods.values() for row in rows)]


def merge_rows(old: Sequence[StudyRow], new: Sequence[StudyRow]) -> list[StudyRow]:
    """Both, a new row in the place of an old one of the same experiment, method and seed.

    Raises `RunError` where an experiment would be of two data sets, or one of its methods of two sweeps: means and
    paired differences would be over what does not belong together.
    """
    for one in new:
        for row in (row for row in old if row.experiment == one.experiment):
            if row.dataset and row.dataset != one.dataset:
                raise RunError(
                    f"runs.csv: {one.experiment} has rows of the data set {row.dataset}, and these runs are of "
                    f"{one.dataset}; name them otherwise with experiment=NAME, or give another output="
                )
            if row.method == one.method and row.sweep and row.sweep != one.sweep:
                raise RunError(
                    f"runs.csv: {one.experiment}, {one.method} has rows of the sweep {row.sweep}, and these are of the "
                    f"sweep {one.sweep}; name them otherwise with experiment=NAME, or give another output="
                )
    return list({(row.experiment, row.method, row.seed): row for row in [*old, *new]}.values())


def write_rows(rows: Sequence[StudyRow], path: Path) -> None:
    """Write `runs.csv`, scores with four decimals."""
    lines = (
        [row.experiment, row.method, row.seed, *score_cells(map(row.scores.get, SCORES)), row.dataset, row.sweep]
        for row in rows
    )
    write_lines(path, (*FIELDS, *ORIGIN), lines)


# ---------------------------------------------------------------------------------------------------------- numbers
def mean_over(values: Iterable[float | None]) -> Mean | None:
    """Mean of the values that are not `None`; `None` when there are none."""
    numbers = [float(value) for value in values if value is not None]
    if not numbers:
        return None
    return Mean(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))


def mean_score(results: Sequence[Mapping[str, Any]], part: str, metric: str) -> Mean | None:
    """A score over runs, of a part such as `base` or `gzsl.novel`; a run where it is null does not count."""
    return mean_over(None if (scores := found_part(result, part)) is None else scores[metric] for result in results)


def found_part(result: Mapping[str, Any], part: str) -> Mapping[str, Any] | None:
    """A part of `results.json`, `None` where it or what it stands in is null or, in a run of before, missing."""
    found: Mapping[str, Any] | None = result
    for name in part.split("."):
        found = found.get(name) if found is not None else None
    return found


def mean_hm(results: Sequence[Mapping[str, Any]], metric: str, within: str = "") -> Mean | None:
    """HM of the averaged base and novel scores, as the paper's tables have it, with the deviation of the runs' own HMs.

    The mean of the runs' HMs is another number, never the larger one. `within`: `gzsl.` for those among all classes.
    """
    base, novel, own = (mean_score(results, within + part, metric) for part in ("base", "novel", "hm"))
    return Mean(harmonic_mean(base.mean, novel.mean), own.deviation, own.n) if base and novel and own else None


def paired_difference(
    rows: Sequence[StudyRow], reference: Sequence[StudyRow], score: str, level: float = LEVEL
) -> Difference | None:
    """Mean of `rows` minus `reference` over the seeds that both have, mean ± t(n-1) s/√n; `None` without a pair."""
    differences = paired_differences(rows, reference, score)
    if not differences:
        return None
    if len(differences) == 1:
        return Difference(differences[0], None, None, 1)
    return Difference(statistics.fmean(differences), *mean_interval(differences, level), len(differences))


def paired_differences(rows: Sequence[StudyRow], reference: Sequence[StudyRow], score: str) -> list[float]:
    """A score of `rows` minus that of `reference`, for each seed where both have it."""
    other = {row.seed: row.scores[score] for row in reference}
    pairs = [(row.scores[score], other[row.seed]) for row in rows if row.seed in other]
    return [a - b for a, b in pairs if a is not None and b is not None]


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The ends of Student's interval of a mean, mean ± t(n-1) s/√n; of one value twice itself."""
    n, mean = len(values), statistics.fmean(values)
    half = float(student_t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n) if n > 1 else 0.0
    return mean - half, mean + half
