"""The report of a finished run: one HTML page that works offline, its figures, and their numbers."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from typing_extensions import TypedDict

from ace_dist.evaluate import svg
from ace_dist.evaluate.caveats import predicted_runs
from ace_dist.evaluate.examples import Frames, same_clips
from ace_dist.evaluate.palette import METHODS, method_name
from ace_dist.evaluate.run_files import BEFORE, Run, read_predictions, read_results, read_run
from ace_dist.evaluate.sections import (
    FIGURES,
    Figure,
    Predicted,
    Results,
    Section,
    chance_row,
    class_rows,
    class_section,
    curve_section,
    example_sections,
    group_distances,
    gzsl_section,
    space_section,
    srt_section,
    wordings_section,
)
from ace_dist.evaluate.verdict import against, tested, verdict
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_json, write_text
from ace_dist.utils.pictures import data_uri
from ace_dist.utils.reading import Text, check_shape, read_object, read_yaml
from ace_dist.utils.tables import csv_text

COMPARED = "compared.json"  # beside the page: the other runs that it was asked to show, as seen from there
FORMATS = ("csv", "mstcn", "webdataset")  # data sets whose name says how they are stored
COMMON_NAMES = {"", "annotations", "labels", "shards", "data", "clips"}  # of files and folders, which name no data set


class Compared(TypedDict):
    runs: list[Text]


def write_report(
    folder: Path, compare: Sequence[Path] | None = None, output: Path | None = None, shards: str | None = None
) -> Path:
    """Write `report.html` and `figures/` into the run folder, or `output`, and return the path of the page.

    `compare`: other run folders (say ProcVLR on the same seed); each becomes a row of the table and of the figures, and
    must be of the same dataset and fold; `None`: those that the page had before. The results in `before/` of the run,
    of the weights that it began with, are a row in any case. `shards`: where the clips lie now.
    Raises `RunError` when a file is missing, naming it and the launcher that makes it, or when the runs are not
    comparable.
    """
    run = read_run(folder, output)
    others = list(compared_before(run) if compare is None else compare)
    asked, before = 1 + len(others), run.tested / BEFORE
    if (before / "results.json").is_file() and before.resolve() not in (other.resolve() for other in others):
        others.append(before)
    rows = table_rows(run, others)
    ours, *names = rows
    guesses: dict[str, Predicted] = {ours: {"base": run.base, "novel": run.novel, "srt": run.srt}}
    guesses |= {name: read_predictions(other) for name, other in zip(names, others, strict=True)}
    frames = Frames.of_run(folder, shards)
    css = svg.theme_css([*rows])
    sections = [
        wordings_section(dict(itertools.islice(guesses.items(), asked)), frames),
        srt_section(run, rows),
        *example_sections(run, ours, frames),
        class_section(run),
        gzsl_section(rows),
        space_section(run),
        curve_section(run),
    ]
    (run.output / "figures").mkdir(parents=True, exist_ok=True)
    if compare is not None:
        write_json(run.output / COMPARED, {"runs": [os.path.relpath(other, run.output) for other in compare]})
    drawn = [figure for section in sections for figure in section.figures]
    for figure in drawn:
        write_figure(figure, run.output / "figures", css)
    for name in set(FIGURES) - {figure.name for figure in drawn}:  # of an earlier report, of other results
        for suffix in (".svg", ".csv"):
            (run.output / "figures" / f"{name}{suffix}").unlink(missing_ok=True)
    path = run.output / "report.html"
    write_text(path, page_html(run, rows, guesses, sections, frames, css))
    return path


def page_html(
    run: Run,
    rows: Mapping[str, Results],
    guesses: Mapping[str, Predicted],
    sections: Sequence[Section],
    frames: Frames,
    css: str,
) -> str:
    chance = chance_row(run)
    classes = class_rows(run, frames)  # the frames' problem, if any, is known only then
    templates = Environment(
        loader=PackageLoader("ace_dist.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("report.html.j2").render(
        run=run,
        css=Markup(css),  # nosec B704: colours and names of our own
        method=method_name(run.results["method"]),
        dataset=dataset_name(run),
        verdict=" ".join(verdict_sentences(run, rows, guesses, frames)),
        facts=facts(run, rows),
        rows=rows,
        random=chance,
        notes=notes(rows),
        sections=sections,
        classes=classes,
        problem=frames.problem,
        distances=group_distances(run.space),
        together={name: results for name, results in {**rows, "Random": chance}.items() if results["gzsl"]},
        srt=list(zip(run.results["srt"]["runs"], run.srt, strict=True)) if run.srt else [],
        environment=json.dumps(run.environment, indent=2, ensure_ascii=False),
    )


def compared_before(run: Run) -> list[Path]:
    """The runs that the page before this one showed; one that is gone, or comparable no more, is left out aloud."""
    path, found = run.output / COMPARED, []
    if not path.is_file():
        return []
    advice = "; delete it, or write it anew with `ace report run=DIR compare=...`"
    stored = check_shape(read_object(path, RunError, advice), Compared, str(path), RunError, advice)
    for name in stored["runs"]:
        other = Path(os.path.normpath(run.output / name))
        try:
            table_rows(run, [other])
            theirs = read_predictions(other)
            for ours, entry in ((run.base, theirs["base"]), (run.novel, theirs["novel"])):
                if ours and entry:
                    same_clips(ours["ids"], entry)
        except RunError as error:
            print(f"left out of the report: {error}", flush=True)
        else:
            found.append(other)
    return found


def write_figure(figure: Figure, folder: Path, css: str) -> None:
    """Write a figure's SVG and its numbers beside the page, and note them as links of the page that need no file."""
    files = {
        f"{figure.name}.svg": svg.standalone(figure.svg, css),
        f"{figure.name}.csv": csv_text(figure.numbers),
    }
    for name, text in files.items():
        write_text(folder / name, text)
        kind = "image/svg+xml" if name.endswith(".svg") else "text/csv"
        figure.links[name] = data_uri(kind, text.encode())


def dataset_name(run: Run) -> str:
    """The data set's own name: of one that is named as its format, that of its annotations or of its shards' folder."""
    name = str(run.results["dataset"])
    if name not in FORMATS:
        return name
    dataset = read_yaml(run.folder / "config.yaml", RunError).get("dataset") or {}
    for place in (dataset.get("annotations"), dataset.get("shards")):
        for word in (Path(place).stem, Path(place).parent.name) if isinstance(place, str) else ():
            if word not in COMMON_NAMES:
                return word
    return name


def facts(run: Run, rows: Mapping[str, Results]) -> dict[str, str]:
    """What a reader needs to place the result."""
    git = run.environment.get("git") or {}
    parts = {name: part for name, part in (("base", run.base), ("novel", run.novel)) if part}
    commit = str(git.get("commit") or run.environment.get("git_commit") or "unknown")[:10]
    written = datetime.fromtimestamp((run.tested / "results.json").stat().st_mtime, UTC)
    seeds = sorted({int(row["seed"]) for row in rows.values()})
    found = {
        "Seed" if len(seeds) == 1 else "Seeds": ", ".join(map(str, seeds)),
        "Tested": f"{written:%d %B %Y}",
        "Commit": commit + (" with changes" if git.get("modified") else ""),
        "Actions": ", ".join(f"{len(part['classes'])} {name}" for name, part in parts.items()),
        "Test clips": ", ".join(f"{len(part['ids'])} {name}" for name, part in parts.items()),
        "Hardware": in_one_line(run.environment["hardware"]),
    }
    if "world_size" in run.environment:
        found["Ranks"] = str(run.environment["world_size"])
    return found if run.results["fold"] is None else {"Fold": str(run.results["fold"]), **found}


def verdict_sentences(
    run: Run, rows: Mapping[str, Results], guesses: Mapping[str, Predicted], frames: Frames
) -> list[str]:
    """The verdict on the run, its difference to each other one, and the number of seeds."""
    ours, *others = rows
    sentences = [verdict(ours, {**run.results, "chance": run.results["chance"] or chance_row(run)})]
    part = tested(run.results)
    if part is None:
        return sentences
    groups = {key: record.group for key, record in frames.records.items()} | run.groups
    for other in others:
        mine, theirs = (predicted_runs(guesses[name], part) for name in (ours, other))
        if mine and len(mine) == len(theirs):
            sentences.append(against(mine, other, theirs, groups))
    return [*sentences, "This is one seed; others give other numbers."]


def table_rows(run: Run, compare: Sequence[Path]) -> dict[str, Results]:
    """The results of this run and of the others by name, which must be of its dataset and fold.

    A name is the method; with the seed when a method occurs twice, numbered when the seed does not help.
    """
    others = [read_results(folder) for folder in compare]
    for (folder, other), key in itertools.product(zip(compare, others, strict=True), ("dataset", "fold")):
        if other[key] != run.results[key]:
            raise RunError(
                f"{folder} cannot be compared with {run.folder}: {key} is {other[key]!r} there and "
                f"{run.results[key]!r} here; leave it out of `compare`"
            )
    results = [run.results, *others]
    names = [row_name(row) for row in results]
    if len(set(names)) < len(names):
        names = [f"{row_name(row)} (seed {row['seed']})" for row in results]
    names = [name if names.count(name) == 1 else f"{name} #{index + 1}" for index, name in enumerate(names)]
    return dict(zip(names, results, strict=True))


def row_name(results: Results) -> str:
    return METHODS["pretrained_not_fine_tuned"][0] if is_before(results) else method_name(results["method"])


def is_before(results: Results) -> bool:
    """Whether they are of the weights that training began with (`ace evaluate evaluation.interpolate=0`)."""
    return str(results.get("weights", "")).endswith("evaluation.interpolate=0")


def notes(rows: Mapping[str, Results]) -> list[str]:
    """What speaks against the scores of each row; before fine-tuning nobody expects them to be above chance."""
    ours, *others = rows
    found = [f"{name}: {note}" for name in others if not is_before(rows[name]) for note in rows[name]["notes"]]
    return [*rows[ours]["notes"], *found]


def in_one_line(value: Any) -> str:
    """A value of environment.json in words."""
    if value is None or value in ([], {}, ()):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_one_line(part)}" for key, part in value.items())
    return ", ".join(map(in_one_line, value)) if isinstance(value, (list, tuple)) else str(value)
