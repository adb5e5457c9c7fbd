"""The gain of one method over another on a grid of settings: a forest plot of paired differences, from `runs.csv`.

The settings of a row are the words with `=` in its experiment and its method: `grid verb_noise=0.4 tower=clip` and
`ace`, or `grid` and `ace dataset.world.domain_shift=0.5`, whichever way the sweeps were made.
"""

from collections.abc import Sequence
from pathlib import Path

from ace_dist.evaluate import figures
from ace_dist.evaluate.palette import method_name
from ace_dist.tools.study.drawing import GAINS, gain_counts, gains_figure
from ace_dist.tools.study.report import PAIRED_NOTE, markdown_table
from ace_dist.tools.study.rows import Difference, StudyRow, paired_difference, read_rows
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_text

Cell = tuple[str, ...]  # a value for each key of the grid


def write_gains(output: Path, experiment: str, method: str, reference: str) -> list[Path]:
    """Write `EXPERIMENT_gain.md` and a forest plot of the gains in novel, SRT mean and SRT spread; returns the paths.

    Takes the rows of `runs.csv` in `output` whose experiment begins with the word `experiment`. Cells without a pair
    are on the page too. Raises `RunError` when no cell has one.
    """
    rows = [row for row in read_rows(output / "runs.csv") if row.experiment.split()[0] == experiment]
    keys, cells = gains(rows, method, reference)
    if not any(cells.values()):
        raise RunError(f"{output / 'runs.csv'}: no seed of {experiment} has both {method} and {reference}")
    words = [key.split("_")[-1] for key in keys]  # `synonym_tail=flat` is read as "tail flat"
    named = {", ".join(map(" ".join, zip(words, cell, strict=True))): pairs for cell, pairs in cells.items() if pairs}
    ahead, behind, known = gain_counts(named)
    title = f"Under other words {method_name(method)} is ahead of {method_name(reference)} in {ahead} of {known} worlds"
    figure = gains_figure(named, f"{title}, behind in {behind}")
    picture = figures.save(figure, output / f"{experiment}_gain.png")
    body = []
    for cell, pairs in cells.items():
        n = max((difference.n for difference in pairs.values()), default=0)
        body.append([*cell, n, *(pairs.get(score, "-") for score in GAINS)])
    lines = [f"# {experiment}: {method_name(method)} minus {method_name(reference)}", "", PAIRED_NOTE, ""]
    lines += [*markdown_table([*keys, "n", *GAINS.values()], body), ""]
    page = output / f"{experiment}_gain.md"
    write_text(page, "\n".join([*lines, f"![{picture.stem}]({picture.name})"]) + "\n")
    return [page, picture]


def gains(
    rows: Sequence[StudyRow], method: str, reference: str
) -> tuple[tuple[str, ...], dict[Cell, dict[str, Difference]]]:
    """The grid's keys, and for every cell the paired differences of `GAINS`; an empty one where nothing is paired.

    Raises `RunError` when rows have no settings, or not all the same keys.
    """
    groups: dict[Cell, dict[str, list[StudyRow]]] = {}
    keys: tuple[str, ...] = ()
    for row in rows:
        words = [word.partition("=") for word in f"{row.experiment} {row.method}".split()]
        settings = {key.split(".")[-1]: value for key, equals, value in words if equals}
        keys = keys or tuple(settings)
        if set(settings) != set(keys) or not keys:
            raise RunError(
                f"{row.experiment}, {row.method}: the settings {', '.join(settings) or '(none)'} are not those of the "
                f"other rows ({', '.join(keys) or '(none)'}); a grid's experiments are named like 'grid verb_noise=0.4'"
            )
        name = " ".join(word for word in row.method.split() if "=" not in word)
        groups.setdefault(tuple(settings[key] for key in keys), {}).setdefault(name, []).append(row)
    cells: dict[Cell, dict[str, Difference]] = {}
    for cell, methods in groups.items():
        ours, theirs = methods.get(method, []), methods.get(reference, [])
        pairs = {score: paired_difference(ours, theirs, score) for score in GAINS}
        cells[cell] = {score: difference for score, difference in pairs.items() if difference is not None}
    return keys, cells
