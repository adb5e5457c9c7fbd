"""The report of a study: `runs.csv`, a page an experiment, and its figures."""

import itertools
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ace_dist.evaluate.metrics import concept_distances, harmonic_mean
from ace_dist.evaluate.run_files import read_space
from ace_dist.tools.study.drawing import chances, draw_study, row_name
from ace_dist.tools.study.rows import (
    LEVEL,
    SCORES,
    Finished,
    PlannedRun,
    StudyRow,
    by_method,
    gather,
    mean_over,
    merge_rows,
    paired_difference,
    read_rows,
    scored,
    write_rows,
)
from ace_dist.tools.study.tables import load_table, table_names
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_text

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
PAIR_NOTE = "The first of a pair -> the second, and their difference with its interval. Spread: smaller is better."
CONCEPT_NOTE = "Cosine distances of phrase embeddings within an action and between actions, mean ± deviation over runs."


def write_study(
    planned: Iterable[PlannedRun],
    output: Path,
    experiment: str,
    reference: str,
    curves: Mapping[str, Mapping[float, str]],
    commands: Sequence[str] = (),
    pairs: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> list[Path]:
    """Add a sweep's finished runs to `runs.csv` of `output`, write `EXPERIMENT.md` and its figures; returns the paths.

    The page and its figures are of all rows of the experiment in `runs.csv`. `reference`: the method
    that the others are compared with; of a table with `pairs` each pair is compared instead. `commands`: what started
    the runs. Nothing is written when something is wrong.
    A seed of the sweep that is not finished has no row, whatever was reported before. Raises `RunError` as `gather` and
    `merge_rows` do, and for runs of several data sets.
    An experiment with `=` in its name is one cell of a grid (`tools.study.grid`) and gets rows alone.
    """
    planned = list(planned)
    if len(datasets := sorted({run.dataset for run in planned})) > 1:
        raise RunError(f"the sweep has runs of {', '.join(datasets)}, which are not compared; choose with dataset=NAME")
    study = gather(planned, experiment)
    gone = {(run.method, run.seed) for run in planned} - {(row.method, row.seed) for row in study.rows}
    merged = merge_rows(read_rows(output / "runs.csv"), study.rows)
    rows = [row for row in merged if row.experiment != experiment or (row.method, row.seed) not in gone]
    if "=" in experiment:
        if study.missing:
            raise RunError(f"{experiment}: a cell of a grid must be whole, but {'; '.join(study.missing[:4])}")
        write_rows(rows, output / "runs.csv")
        return [output / "runs.csv"]
    mine = [row for row in rows if row.experiment == experiment]
    history = [*(f"`{command}`" for command in dict.fromkeys(commands)), *study.history]
    page = study_page(mine, reference, study.missing, history, concept_table(study.finished), pairs)
    # All is known to be sound, the reference too: only now are files written.
    stem = study_stem(output, experiment)
    pictures = draw_study(mine, curves, stem, chances(same_test(rows, mine)))
    if pictures:
        page = "\n".join([page, *(f"![{path.stem}]({path.name})\n" for path in pictures)])
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
    pairs: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> str:
    """Markdown of one experiment: means, differences to `reference`, what is missing, and how it was made.

    `concepts`: the lines of `concept_table`. `pairs` are compared within, instead of with the reference. Raises
    `RunError` when no row is of the reference.
    """
    methods = by_method(rows)
    if not pairs and reference not in methods:
        raise RunError(f"reference={reference or '(not set)'} has no finished run; there are {', '.join(methods)}")
    lines = [f"# {rows[0].experiment}", "", NOTE, "", *summary_table(methods), ""]
    if pairs:
        lines += ["## Within each pair", "", *pair_table(methods, pairs), ""]
    else:
        table = difference_table(methods, reference)
        lines += [f"## Difference to {row_name(reference)}", "", PAIRED_NOTE, "", *table, ""]
    if concepts:
        lines += ["## Concept space", "", CONCEPT_NOTE, "", *concepts, ""]
    against = {second: first for first, second in pairs.values()} or dict.fromkeys(methods, reference)
    gaps = list(missing)
    for method, first in against.items():
        ours, theirs = ({row.seed for row in methods.get(key, ())} for key in (method, first))
        if odd := sorted(ours ^ theirs):
            gaps.append(f"{method} and {first} are not paired at seed {', '.join(map(str, odd))}")
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
        body.append([row_name(method), len(rows), *(means[score] or "-" for score in scores), *hm])
    names = [*(f"hm {metric}" for metric in METRICS), *(f"gzsl hm {metric}" for metric in METRICS)]
    return markdown_table(["method", "n", *(s.replace("_", " ") for s in scores), *names[: len(hm)]], body)


def difference_table(methods: Mapping[str, Sequence[StudyRow]], reference: str) -> list[str]:
    scores, body = scored(TITLES, methods), []
    for method, rows in methods.items():
        if method != reference:
            differences = [paired_difference(rows, methods[reference], score) for score in scores]
            n = max((difference.n for difference in differences if difference), default=0)
            body.append([row_name(method), n, *(difference or "-" for difference in differences)])
    return markdown_table(["method", "n", *(TITLES[score] for score in scores)], body)


def pair_lines(planned: Sequence[PlannedRun], pairs: Mapping[str, tuple[str, str]]) -> list[str]:
    """`pair_table` of a sweep's finished runs; nothing before there are any."""
    if not any((run.folder / "results.json").is_file() for run in planned):
        return []
    return pair_table(by_method(gather(planned, "").rows), pairs)


def pair_table(methods: Mapping[str, Sequence[StudyRow]], pairs: Mapping[str, tuple[str, str]]) -> list[str]:
    """A line a pair with a finished seed: both means and their paired difference over its n seeds; and notes."""
    scores, body = scored(TITLES, methods), []
    for name, (first, second) in pairs.items():
        seeds = {row.seed for row in methods.get(first, ())} & {row.seed for row in methods.get(second, ())}
        one, other = ([row for row in methods.get(key, ()) if row.seed in seeds] for key in (first, second))
        if seeds:
            body.append([name, str(len(seeds)), *(pair_cell(one, other, score) for score in scores)])
    return [*markdown_table(["", "n", *(TITLES[score] for score in scores)], body), "", PAIR_NOTE, "", PAIRED_NOTE]


def pair_cell(one: Sequence[StudyRow], other: Sequence[StudyRow], score: str) -> str:
    """Both means and the difference over the seeds in which both have the score; their number where it is less."""
    difference = paired_difference(other, one, score)
    if difference is None:
        return "-"
    known = [{row.seed: row.scores[score] for row in rows if row.scores[score] is not None} for rows in (one, other)]
    both = known[0].keys() & known[1].keys()
    first, second = (statistics.fmean(scores[seed] or 0.0 for seed in both) for scores in known)
    fewer = f" (n = {len(both)})" if len(both) < len({row.seed for row in one}) else ""
    return f"{first:.1f} -> {second:.1f}: {difference}{fewer}"


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
        body.append([row_name(method), len(spaces), *cells])
    header = ["method", "n", "within, before", "within, after", "between, before", "between, after"]
    return markdown_table(header, body)


# ---------------------------------------------------------------------------------------------------------- figures
def redraw(output: Path) -> list[Path]:
    """Draw the figures of every experiment in `runs.csv` of `output` again; returns their paths.

    Raises `RunError` when there is no row.
    """
    rows = read_rows(output / "runs.csv")
    if not rows:
        raise RunError(
            f"{output / 'runs.csv'} holds no run; `ace report sweep=DIR output={output}` adds those of a sweep"
        )
    paths = []
    for experiment in dict.fromkeys(row.experiment for row in rows if "=" not in row.experiment):
        curves = load_table(experiment).curves if experiment in table_names() else {}
        mine = [row for row in rows if row.experiment == experiment]
        paths += draw_study(mine, curves, study_stem(output, experiment), chances(same_test(rows, mine)))
    return paths


def same_test(rows: Sequence[StudyRow], mine: Sequence[StudyRow]) -> list[StudyRow]:
    """The rows of the data set of `mine`, whose guesses are theirs."""
    return [row for row in rows if row.dataset in {one.dataset for one in mine}]


def study_stem(output: Path, experiment: str) -> Path:
    """Of an experiment's page and figures, without the ending."""
    return output / re.sub(r"[^\w.]+", "_", experiment)
