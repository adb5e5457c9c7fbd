"""The report of a study: `runs.csv`, a page an experiment, box plots of the SRT by method, curves over a number."""

import itertools
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ace_dist.evaluate import figures
from ace_dist.evaluate.metrics import concept_distances, harmonic_mean
from ace_dist.evaluate.palette import LIGHT
from ace_dist.evaluate.run_files import read_space
from ace_dist.tools.study.rows import (
    LEVEL,
    SCORES,
    Finished,
    PlannedRun,
    StudyRow,
    gather,
    mean_over,
    merge_rows,
    paired_difference,
    read_rows,
    write_rows,
)
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_text

LINES = (  # name, score, its spread over label sets, colour
    ("base", "base_{}", None, LIGHT.base),
    ("novel", "novel_{}", None, LIGHT.novel),
    ("SRT", "srt_{}_mean", "srt_{}_std", LIGHT.series[0]),
    ("SRT of base actions", "srt_base_{}_mean", "srt_base_{}_std", LIGHT.series[3]),
)
METRICS = {"accuracy": "accuracy", "f1": "macro F1"}
TITLES = {
    "base_accuracy": "base",
    "novel_accuracy": "novel",
    "srt_accuracy_mean": "SRT mean",
    "srt_accuracy_std": "SRT spread",
    "srt_base_accuracy_mean": "SRT base mean",
    "srt_base_accuracy_std": "SRT base spread",
    "gzsl_area": "GZSL area",
}
NOTE = (
    "Percent. mean ± sample standard deviation (n-1) over n seeds. SRT mean and spread: mean and standard deviation "
    "over the label sets of one run. HM: of the averaged base and novel columns. GZSL: base and novel clips among all "
    "classes; area: under the curve of novel over base accuracy at every bias taken from the scores of base classes."
)
PAIRED_NOTE = (
    f"Accuracy, paired by seed, with Student's {LEVEL:.0%} interval over n seeds; not corrected for the number of "
    "comparisons. Seeds share the test clips and label sets, so the interval says nothing of other clips or words."
)
FIGURE_NOTE = (
    "Box plots: every label set of every seed, a line of dots a seed, the diamond under the root labels. Curves: "
    "shaded is the deviation over seeds, of SRT the mean spread over label sets."
)
CONCEPT_NOTE = "Cosine distances of phrase embeddings within an action and between actions, mean ± deviation over runs."


def write_study(
    planned: Iterable[PlannedRun],
    output: Path,
    experiment: str,
    reference: str,
    curves: Mapping[str, Mapping[float, str]],
    commands: Sequence[str] = (),
) -> list[Path]:
    """Add a sweep's finished runs to `runs.csv` of `output`, write `EXPERIMENT.md` and its figures; returns the paths.

    The page is of all rows of the experiment in `runs.csv`, its box plots of this sweep's runs. `reference`: the method
    that the others are compared with. `commands`: what started the runs. Nothing is written when something is wrong.
    An experiment with `=` in its name is one cell of a grid (`tools.study.grid`) and gets rows alone.
    """
    study = gather(planned, experiment)
    rows = merge_rows(read_rows(output / "runs.csv"), study.rows)
    if "=" in experiment:
        if study.missing:
            raise RunError(f"{experiment}: a cell of a grid must be whole, but {'; '.join(study.missing[:4])}")
        write_rows(rows, output / "runs.csv")
        return [output / "runs.csv"]
    mine = [row for row in rows if row.experiment == experiment]
    history = [*(f"`{command}`" for command in dict.fromkeys(commands)), *study.history]
    page = study_page(mine, reference, study.missing, history, concept_table(study.finished))
    # All is known to be sound, the reference too: only now are files written.
    stem = output / re.sub(r"[^\w.]+", "_", experiment)
    pictures = draw_study(mine, study.finished, curves, stem)
    if pictures:
        page = "\n".join([page, FIGURE_NOTE, "", *(f"![{path.stem}]({path.name})\n" for path in pictures)])
    path = stem.with_name(f"{stem.name}.md")
    write_text(path, page.rstrip() + "\n")
    write_rows(rows, output / "runs.csv")
    return [output / "runs.csv", path, *pictures]


# ------------------------------------------------------------------------------------------------------------- page
def study_page(
    rows: Sequence[StudyRow],
    reference: str,
    missing: Sequence[str] = (),
    history: Sequence[str] = (),
    concepts: Sequence[str] = (),
) -> str:
    """Markdown of one experiment: means, differences to `reference`, what is missing, and how it was made.

    `concepts`: the lines of `concept_table`. Raises `RunError` when no row is of the reference.
    """
    methods: dict[str, list[StudyRow]] = {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)
    if reference not in methods:
        raise RunError(f"reference={reference} has no finished run; there are {', '.join(methods)}")
    lines = [f"# {rows[0].experiment}", "", NOTE, "", *summary_table(methods), ""]
    lines += [f"## Difference to {reference}", "", PAIRED_NOTE, "", *difference_table(methods, reference), ""]
    if concepts:
        lines += ["## Concept space", "", CONCEPT_NOTE, "", *concepts, ""]
    theirs, gaps = {row.seed for row in methods[reference]}, list(missing)
    for method, ours in methods.items():
        if odd := sorted({row.seed for row in ours} ^ theirs):
            gaps.append(f"{method} and {reference} are not paired at seed {', '.join(map(str, odd))}")
    for title, entries in (("Missing", gaps), ("Made by", history)):
        if entries:
            lines += [f"## {title}", "", *(f"- {entry}" for entry in entries), ""]
    return "\n".join(lines)


def markdown_table(header: Sequence[object], body: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table, its first column to the left and the others to the right."""
    rows = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *body)]
    return [rows[0], "|---|" + "---:|" * (len(header) - 1), *rows[1:]]


def summary_table(methods: Mapping[str, Sequence[StudyRow]]) -> list[str]:
    """Mean ± deviation of every score that a row has, a line a method, and the HM of the averaged columns."""
    scores, body = scored(SCORES, methods), []
    for method, rows in methods.items():
        means = {score: mean_over(row.scores[score] for row in rows) for score in SCORES}
        hm = []
        for kind, metric in itertools.product(("", "gzsl_") if "gzsl_area" in scores else ("",), METRICS):
            base, novel = means[f"{kind}base_{metric}"], means[f"{kind}novel_{metric}"]
            hm.append(f"{harmonic_mean(base.mean, novel.mean):.1f}" if base and novel else "-")
        body.append([method, len(rows), *(means[score] or "-" for score in scores), *hm])
    names = [*(f"hm {metric}" for metric in METRICS), *(f"gzsl hm {metric}" for metric in METRICS)]
    return markdown_table(["method", "n", *(s.replace("_", " ") for s in scores), *names[: len(hm)]], body)


def scored(scores: Iterable[str], methods: Mapping[str, Sequence[StudyRow]]) -> list[str]:
    """Those of `scores` that some row has: runs of before lack the later ones."""
    return [s for s in scores if any(row.scores[s] is not None for rows in methods.values() for row in rows)]


def difference_table(methods: Mapping[str, Sequence[StudyRow]], reference: str) -> list[str]:
    scores, body = scored(TITLES, methods), []
    for method, rows in methods.items():
        if method != reference:
            differences = [paired_difference(rows, methods[reference], score) for score in scores]
            n = max((difference.n for difference in differences if difference), default=0)
            body.append([method, n, *(difference or "-" for difference in differences)])
    return markdown_table(["method", "n", *(TITLES[score] for score in scores)], body)


def concept_table(finished: Finished) -> list[str]:
    """Cosine distances within and between the concepts of the text tower, before and after training, a line a method.

    What the paper's Fig. 5 suggests, measured in the full space over all phrases: mean ± deviation over runs. Raises
    `RunError` when a run has no `concept_space.npz`.
    """
    body = []
    for method, runs in finished.items():
        spaces = [read_space(folder) for folder, _ in runs]
        before = [concept_distances(space.before, space.actions) for space in spaces]
        after = [concept_distances(space.after, space.actions) for space in spaces]
        cells = []
        for values in ([one[name] for one in rows] for name in ("within", "between") for rows in (before, after)):
            deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{deviation}")
        body.append([method, len(spaces), *cells])
    header = ["method", "n", "within, before", "within, after", "between, before", "between, after"]
    return markdown_table(header, body)


# ---------------------------------------------------------------------------------------------------------- figures
def draw_study(
    rows: Sequence[StudyRow], finished: Finished, curves: Mapping[str, Mapping[float, str]], stem: Path
) -> list[Path]:
    """Write the figures of one experiment beside `stem`: a box plot a metric, and a plot a curve and metric.

    `curves`: axis label -> number -> method; one of fewer than two finished points is not drawn.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Figure] = {}
    for metric, title in METRICS.items():
        runs = {
            method: np.array([[run[metric] for run in one["srt"]["runs"]] for _, one in ours if one["srt"] is not None])
            for method, ours in finished.items()
        }
        if tested := {method: values for method, values in runs.items() if values.size}:
            label = f"{title} of each label set and seed (%); ◇ root labels"
            drawings[f"srt_{metric}"] = figures.srt_figure(tested, label)
    for number, (axis, methods) in enumerate(curves.items(), start=1):
        groups = {x: [row for row in rows if row.method == method] for x, method in sorted(methods.items())}
        points = {x: group for x, group in groups.items() if group}
        if len(points) > 1:
            for metric, title in METRICS.items():
                drawings[f"curve{number}_{metric}"] = curve_figure(points, axis, metric, title)
    return [figures.save(figure, stem.with_name(f"{stem.name}_{name}.png")) for name, figure in drawings.items()]


def curve_figure(points: Mapping[float, Sequence[StudyRow]], axis: str, metric: str, title: str) -> Figure:
    """Base, novel and SRT scores over a number. Shaded: deviation over seeds; of SRT: mean spread over label sets."""
    figure, axes = figures.panel(LIGHT, 3.0)
    for name, score, spread, colour in LINES:
        x, means, widths = list[float](), list[float](), list[float]()
        for number, rows in points.items():
            if mean := mean_over(row.scores[score.format(metric)] for row in rows):
                over_sets = mean_over(row.scores[spread.format(metric)] for row in rows) if spread else None
                x.append(number)
                means.append(mean.mean)
                widths.append((over_sets.mean if over_sets else 0.0) if spread else mean.deviation or 0.0)
        if x:
            low, high = np.subtract(means, widths), np.add(means, widths)
            axes.plot(x, means, color=colour, linewidth=1.8, marker="o", markersize=4, label=name)
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xticks(list(points), [f"{x:g}" for x in points])
    axes.set(xlabel=axis, ylabel=f"{title} (%)")
    axes.legend(frameon=False, fontsize=9, labelcolor=LIGHT.ink)
    return figure
