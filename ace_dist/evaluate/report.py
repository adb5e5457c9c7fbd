"""The report of a finished run: one HTML page that works offline, its figures, and the picture of the README."""

import base64
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from typing_extensions import TypedDict

from ace_dist.evaluate import figures
from ace_dist.evaluate.caveats import chance_scores
from ace_dist.evaluate.figures import concept_figure, srt_figure
from ace_dist.evaluate.metrics import class_f1, concept_distances, confusion_matrix
from ace_dist.evaluate.palette import DARK, LIGHT, method_name
from ace_dist.evaluate.run_files import ConceptSpace, Run, read_results, read_run
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_json, write_text
from ace_dist.utils.reading import Text, check_shape, read_object

FloatArray = npt.NDArray[np.float64]
Results = Mapping[str, Any]  # as in results.json
Section = tuple[str, list[dict[str, str]]]  # a paragraph; and pictures, each a caption and data URIs of both themes
TSNE_SEED = 0
TSNE_LEAST = 4  # phrases; scikit-learn's perplexity must stay below their number
COMPARED = "compared.json"  # beside the page: the other runs that it was asked to show, as seen from there
CURVES = (  # prefix of the logged names, file, axis, caption, whether the axis starts at 0
    ("loss", "loss", "loss", "Loss and its parts (ACE Eq. 9).", False),
    ("lr", "learning_rate", "learning rate", "Learning rates.", True),
    ("clips_per_s", "throughput", "clips / s", "Throughput, all ranks.", True),
    ("data_wait_share", "data_wait", "share of the step", "Share of a step spent waiting for data.", True),
    ("validation", "validation", "percent", "Validation: base actions of held-out groups.", True),
)


class Compared(TypedDict):
    runs: list[Text]


def write_report(folder: Path, compare: Sequence[Path] | None = None, output: Path | None = None) -> Path:
    """Write `report.html` and `figures/*.png` into the run folder, or `output`, and return the path of the page.

    `compare`: other run folders (say ProcVLR on the same seed); each becomes a row of the table and of the SRT
    plot, and must be of the same dataset and fold. `None`: those that the page had before. Raises `RunError` when a
    file is missing, naming it and the launcher that makes it, or when the runs are not comparable.
    """
    run = read_run(folder, output)
    rows = table_rows(run, compared_before(run) if compare is None else compare)
    (run.output / "figures").mkdir(parents=True, exist_ok=True)
    if compare is not None:
        others = [os.path.relpath(other, run.output) for other in compare]
        write_json(run.output / COMPARED, {"runs": others})
    pages = PackageLoader("ace_dist.evaluate")
    templates = Environment(
        loader=pages, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = templates.get_template("report.html.j2").render(
        run=run,
        method=method_name(run.results["method"]),
        hardware=in_one_line(run.environment["hardware"]),
        rows=rows,
        random=chance_row(run),
        notes=[
            note if name == next(iter(rows)) else f"{name}: {note}" for name in rows for note in rows[name]["notes"]
        ],
        sections={
            "Synonym robustness": srt_section(run, rows),
            "All classes together": gzsl_section(run, rows),
            "Concept space": space_section(run),
            "Classes": class_section(run),
            "Training": curve_section(run),
        },
        distances=group_distances(run.space),
        together={name: results for name, results in {**rows, "Random": chance_row(run)}.items() if results["gzsl"]},
        srt=list(zip(run.results["srt"]["runs"], run.srt, strict=True)) if run.srt else [],
        environment=json.dumps(run.environment, indent=2, ensure_ascii=False),
    )
    path = run.output / "report.html"
    write_text(path, text)
    return path


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
        except RunError as error:
            print(f"left out of the report: {error}", flush=True)
        else:
            found.append(other)
    return found


def result_picture(folder: Path, path: Path, compare: Sequence[Path] | None = None) -> Path:
    """Draw the one picture that tells the run (2040 x 850 pixels): concept space before and after, and the scores."""
    run = read_run(folder)
    rows, space = table_rows(run, compared_before(run) if compare is None else compare), run.space
    if len(space.phrases) < TSNE_LEAST:
        raise RunError(f"{folder}: {too_few(space)}")
    spaces = {}
    for when, embeddings in (("before", space.before), ("after", space.after)):
        distances = concept_distances(embeddings, space.actions)
        caption = f"distance within a concept {distances['within']:.2f}, between {distances['between']:.2f}"
        spaces[when] = (concept_layout(embeddings, space.actions), caption)
    figure = figures.result_figure(
        f"{method_name(run.results['method'])} on {run.results['dataset']}: one action, many words",
        spaces,
        space.actions,
        space.base,
        {name: accuracies(results) for name, results in rows.items()},
        {name: mean for name, (mean, _) in accuracies(chance_row(run)).items()},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    return figures.save(figure, path)


# ------------------------------------------------------------------------------------------------------- table rows
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
    names = [method_name(row["method"]) for row in results]
    if len(set(names)) < len(names):
        names = [f"{method_name(row['method'])} (seed {row['seed']})" for row in results]
    names = [name if names.count(name) == 1 else f"{name} #{index + 1}" for index, name in enumerate(names)]
    return dict(zip(names, results, strict=True))


def chance_row(run: Run) -> dict[str, Any]:
    """The scores of guessing, in the shape of results.json; from the predictions, as runs of before do not say them."""
    return {"interval": None, **chance_scores({"base": run.base, "novel": run.novel, "gzsl": run.gzsl})}


def accuracies(results: Results) -> dict[str, tuple[float, float]]:
    """Accuracy of the measures that the run has, of base, novel, HM and SRT, as (mean, std)."""
    single = {"base": "base", "novel": "novel", "HM": "hm"}
    rows = {name: (float(results[key]["accuracy"]), 0.0) for name, key in single.items() if results[key] is not None}
    if (srt := results["srt"]) is not None:
        rows["SRT"] = (float(srt["accuracy_mean"]), float(srt["accuracy_std"]))
    return rows


def group_distances(space: ConceptSpace) -> dict[str, list[dict[str, float]]]:
    """Distances of the concept space before and after, of base, novel and all actions; an empty group is left out."""
    groups = {"base actions": space.base, "novel actions": ~space.base, "all actions": np.ones_like(space.base)}
    return {
        name: [concept_distances(rows[group], np.array(space.actions)[group]) for rows in (space.before, space.after)]
        for name, group in groups.items()
        if group.any()
    }


# --------------------------------------------------------------------------------------------------------- sections
def picture(run: Run, name: str, caption: str, draw: Callable[..., Figure]) -> dict[str, str]:
    """Draw `figures/NAME.png` with `draw(theme=...)` in both themes; its caption and data URIs."""
    found = {"caption": caption}
    for theme, colours, suffix in (("light", LIGHT, ""), ("dark", DARK, "_dark")):
        path = figures.save(draw(theme=colours), run.output / "figures" / f"{name}{suffix}.png")
        found[theme] = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    return found


def srt_section(run: Run, rows: Mapping[str, Results]) -> Section:
    guess = chance_row(run)["novel"]
    if guess is None or not run.srt:
        return "The test split shows no novel action, so there is nothing to test.", []
    pictures = []
    for metric, title in (("accuracy", "Accuracy"), ("f1", "F1")):
        tested = {name: results["srt"]["runs"] for name, results in rows.items() if results["srt"] is not None}
        runs = {name: np.array([[row[metric] for row in scores]]) for name, scores in tested.items()}
        caption = f"{title}: a dot a run, the diamond is run 1 (root labels), the box spans the quartiles."
        draw = partial(srt_figure, runs, f"{title} of each run (%)", guess[metric])
        pictures.append(picture(run, f"srt_{metric}", caption, draw))
    text = (
        f"The novel test clips are classified {len(run.srt)} times, each time with other words for the same actions. "
        "A method that knows the action and not the word has a high mean and a small spread."
    )
    return text, pictures


def gzsl_section(run: Run, rows: Mapping[str, Results]) -> Section:
    curves = {name: results["gzsl"] for name, results in rows.items() if (results["gzsl"] or {}).get("curve")}
    if not curves:
        return "There is no such test: it needs test clips of base and of novel actions, and scores of a model.", []
    text = (
        "Base and novel clips choose among all classes (generalised zero-shot). A model that trained on base classes "
        "prefers them; the curve shows what a bias taken from their scores trades (calibrated stacking), the dot is "
        "without one. The area under it does not depend on any bias; the best harmonic mean is found on the test "
        "clips and bounds what a bias chosen elsewhere can reach."
    )
    draw = partial(figures.bias_figure, curves)
    return text, [picture(run, "bias_curve", "Novel over base accuracy at every bias.", draw)]


def space_section(run: Run) -> Section:
    space, names = run.space, tuple(dict.fromkeys(run.space.actions))
    if len(space.phrases) < TSNE_LEAST:
        return too_few(space), []
    pictures = []
    for name, embeddings in (("before", space.before), ("after", space.after)):
        draw = partial(concept_figure, concept_layout(embeddings, space.actions), space.actions, space.base)
        pictures.append(picture(run, f"concepts_{name}", f"{name.capitalize()} fine-tuning.", draw))
    text = (
        f"t-SNE of the text embeddings of {len(space.phrases)} phrases of {len(names)} actions. A point is a phrase; "
        "an ellipse is the Gaussian of an action (two standard deviations): green with round points for a base "
        "action, orange-red with triangles for a novel one. Both layouts use the same settings and seed, yet lengths "
        "in two t-SNE pictures do not compare: the table below is measured in the full space."
    )
    if len(names) > figures.NAMED_ACTIONS:
        text += " Actions: " + ", ".join(f"{index + 1} {name}" for index, name in enumerate(names)) + "."
    return text, pictures


def too_few(space: ConceptSpace) -> str:
    return f"{len(space.phrases)} phrases are too few for a t-SNE picture, which needs {TSNE_LEAST}."


def class_section(run: Run) -> Section:
    parts = {name: part for name, part in (("base", run.base), ("novel", run.novel)) if part}
    pictures = []
    for name, part in parts.items():
        counts = confusion_matrix(part["labels"], part["predictions"], len(part["classes"]))
        caption = f"{name.capitalize()} actions: rows are the true class, columns the predicted one."
        draw = partial(figures.confusion_figure, counts, part["classes"])
        pictures.append(picture(run, f"confusion_{name}", caption, draw))
    for name, part in parts.items():
        scores = class_f1(part["labels"], part["predictions"], len(part["classes"]))
        support = np.bincount(part["labels"], minlength=len(part["classes"]))
        draw = partial(figures.class_f1_figure, scores, support, part["classes"], name == "base")
        pictures.append(picture(run, f"class_f1_{name}", f"{name.capitalize()} actions: F1 of each class.", draw))
    counted = " and ".join(f"{len(part['ids'])} of {name} actions" for name, part in parts.items())
    return f"Test clips with their root labels: {counted}.", pictures


def curve_section(run: Run) -> Section:
    if not run.metrics:
        return "No step was taken: this is the model as it was before fine-tuning.", []
    pictures = []
    for prefix, name, axis, caption, zero in CURVES:
        points: dict[str, list[tuple[float, float]]] = {}  # of every number named `prefix` or `prefix_*`
        for row in run.metrics:
            for key, value in row.items():
                if (key == prefix or key.startswith(f"{prefix}_")) and isinstance(value, (int, float)):
                    points.setdefault(key, []).append((row["step"], value))
        if points:
            curves = {key: np.array(rows, np.float64).T for key, rows in points.items()}
            draw = partial(figures.curve_figure, curves, axis, zero)
            pictures.append(picture(run, f"curve_{name}", caption, draw))
        elif prefix != "validation":  # which a run need not have
            raise RunError(f"{run.folder / 'metrics.jsonl'}: no line has a number named {prefix} or {prefix}_*")
    return f"{len(run.metrics)} logged steps, up to step {run.metrics[-1]['step']}.", pictures


def concept_layout(embeddings: FloatArray, actions: Sequence[str]) -> FloatArray:
    """t-SNE to the plane [S, 2] with cosine distances; the perplexity follows the number of phrases of an action."""
    perplexity = min(max(5.0, len(embeddings) / len(set(actions))), 30.0, (len(embeddings) - 1) / 3)
    layout = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=TSNE_SEED, n_jobs=1)
    return np.asarray(layout.fit_transform(embeddings), np.float64)


def in_one_line(value: Any) -> str:
    """A value of environment.json in words."""
    if value is None or value in ([], {}, ()):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_one_line(part)}" for key, part in value.items())
    return ", ".join(map(in_one_line, value)) if isinstance(value, (list, tuple)) else str(value)
