"""The report on a tree file: text towers as functions, the pictures of the forest and of its overlaps, the numbers."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ace_dist.concepts import SynonymTrees
from ace_dist.config import TextConfig, resolve_path
from ace_dist.evaluate.figures import DPI, save
from ace_dist.evaluate.palette import LIGHT
from ace_dist.tools.synonyms.diagnostics import ConceptSpread, Diagnostics, Encode
from ace_dist.utils.errors import UserError
from ace_dist.utils.files import write_json

COLUMNS = 2  # of trees in the picture of the forest
ROW_INCHES = 0.185
HEADER = 3  # rows above the first tree: legend and names of the columns
CHARACTERS = 78  # of second-order verbs beside a child


def text_encoder(embed: str) -> Encode:
    """Phrases -> embeddings [S, D] under `embed`: `minilm`, a run folder, or CLIP text weights (.safetensors).

    Raises `UserError` when it is none of these.
    """
    import torch

    from ace_dist.data.run_inputs import run_config
    from ace_dist.evaluate.protocols import encode_phrases
    from ace_dist.evaluate.runs import trained_model
    from ace_dist.models.dual_encoder import build_text_tower
    from ace_dist.models.weights import load_text_weights

    path = resolve_path(embed)
    if (path / "config.yaml").is_file():
        model = trained_model(path, run_config(path), torch.device("cpu"))
        return lambda phrases: encode_phrases(model, phrases).numpy().astype(np.float64)
    if embed == "minilm":
        tower = build_text_tower(TextConfig(tower="minilm", width=384, depth=6, heads=12, embed_dim=384))
    elif path.suffix == ".safetensors":
        tower = build_text_tower(TextConfig())
        load_text_weights(tower, path)
    else:
        raise UserError(f"embed={embed} is not minilm, a run folder, or a .safetensors file of CLIP's text weights")

    return lambda phrases: tower.trainable(tower.frozen(phrases)).detach().double().numpy()


def write_synonym_report(
    trees: SynonymTrees, findings: Diagnostics, spreads: Sequence[ConceptSpread], base: Collection[str], out: Path
) -> list[Path]:
    """Write `forest.png`, `overlap.png` and `diagnostics.json` into the folder `out`; returns their paths.

    Where no two concepts share a verb there is no `overlap.png`.
    """
    out.mkdir(parents=True, exist_ok=True)
    facts = {
        "trees": trees.source,
        "warnings": list(findings.warnings),
        "shared_verbs": findings.shared_verbs(),
        "first_order_overlap": {" / ".join(pair): list(verbs) for pair, verbs in findings.first.items()},
        "second_order_overlap": {" / ".join(pair): list(verbs) for pair, verbs in findings.second.items()},
        "shadow_pools": findings.shadows,
        "unchanged_draws": findings.unchanged,
        "embedding": [asdict(spread) for spread in spreads],
    }
    write_json(out / "diagnostics.json", facts)
    paths = [save(forest_figure(trees, findings, base), out / "forest.png"), out / "diagnostics.json"]
    overlap = out / "overlap.png"
    overlap.unlink(missing_ok=True)  # of trees that were inspected before
    if findings.first or findings.second:
        paths.insert(1, save(overlap_figure(findings), overlap))
    return paths


def findings_table(trees: SynonymTrees, findings: Diagnostics, spreads: Sequence[ConceptSpread]) -> str:
    """One line a concept: sizes, overlaps, shadow pool, and what a text tower says of it."""
    by_root = {spread.root: spread for spread in spreads}
    heads = ("synonyms", "all verbs", "shared synonyms", "shared verbs", "wrong verbs", "unchanged")
    lines = [f"{'concept':16} " + " ".join(heads)]
    if spreads:
        lines[0] += f" {'tightness':>9}  nearest concept (cosine), verbs nearer to another"
    for root in trees.roots:
        verbs = {verb for _, children in trees.nodes(root) for verb in children}
        first, second = (
            len({verb for pair, common in level.items() if root in pair for verb in common})
            for level in (findings.first, findings.second)
        )
        shadows = str(findings.shadows.get(root, "-"))
        unchanged = f"{findings.unchanged[root]:.0%}" if root in findings.unchanged else "-"
        cells = (len(trees.children(root)), len(verbs), first, second, shadows, unchanged)
        line = f"{root:16} " + " ".join(f"{cell:>{len(head)}}" for cell, head in zip(cells, heads, strict=True))
        if spread := by_root.get(root):
            strays = ", ".join(f"{verb} ({other})" for verb, other in spread.strays)
            line += f" {spread.tightness:9.2f}  {spread.nearest} ({spread.nearest_cosine:.2f}) {strays}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def forest_figure(trees: SynonymTrees, findings: Diagnostics, base: Collection[str]) -> Figure:
    """Every tree: root, first-order children, and beside each the second-order verbs that it adds.

    Roots of `base` actions and others have the colours of base and novel; a first-order verb that another concept has
    too is marked with an asterisk.
    """
    columns: list[list[str]] = [[] for _ in range(COLUMNS)]
    heights = [0] * COLUMNS
    for root in trees.roots:  # the shorter column gets the next tree
        column = heights.index(min(heights))
        columns[column].append(root)
        heights[column] += len(trees.children(root)) + 1
    figure = Figure(figsize=(7.6 * COLUMNS, ROW_INCHES * (max(heights) + HEADER) + 0.3), dpi=DPI, facecolor=LIGHT.paper)
    FigureCanvasAgg(figure)
    shared = findings.shared_verbs()
    legend = [("verb of a base action", LIGHT.base), ("verb of no base action", LIGHT.novel)]
    if shared:
        legend.append(("* also a synonym in another concept", LIGHT.ink))
    for x, (text, colour) in zip((0.005, 0.13, 0.26), legend, strict=False):
        figure.text(x, 1.0, text, fontsize=10, color=colour, va="top", fontweight="bold")
    for number, roots in enumerate(columns):
        axes = figure.add_axes((number / COLUMNS, 0.0, 1 / COLUMNS, 1.0))
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(max(heights), -0.5 - HEADER)
        for x, title in ((0.01, "concept"), (0.17, "synonyms"), (0.335, "their synonyms, which the concept adds")):
            axes.text(x, -1.2, title, fontsize=8, color=LIGHT.muted, va="center", fontstyle="italic")
        row = 0
        for root in roots:
            children = trees.children(root)
            middle = row + (len(children) - 1) / 2
            colour = LIGHT.base if root in base else LIGHT.novel
            axes.text(0.01, middle, root, fontsize=11, fontweight="bold", color=colour, va="center")
            for y, child in enumerate(children, row):
                axes.plot([0.115, 0.165], [middle, y], color=LIGHT.grid, linewidth=1.2, solid_capstyle="round")
                name = f"{child} *" if child in shared else child
                weight = "bold" if child == root else "normal"
                axes.text(0.17, y, name, fontsize=9, color=LIGHT.ink, va="center", fontweight=weight)
                text = ", ".join(verb for verb in trees.children(root, child) if verb not in children)
                if len(text) > CHARACTERS:
                    text = text[: CHARACTERS - 1].rsplit(",", 1)[0] + ", …"
                axes.text(0.335, y, text, fontsize=8, color=LIGHT.muted, va="center")
            row += len(children) + 1
    return figure


def overlap_figure(findings: Diagnostics) -> Figure:
    """Verbs that two concepts share, at least one pair: synonyms above the diagonal, also theirs below.

    Only concepts that share a verb have a row.
    """
    sharing = {root for pair in (*findings.first, *findings.second) for root in pair}
    roots = [root for root in findings.roots if root in sharing]
    size = len(roots)
    at = {root: index for index, root in enumerate(roots)}
    counts = np.zeros((size, size))
    for (a, b), verbs in findings.first.items():  # pairs are in the order of the roots
        counts[at[a], at[b]] = len(verbs)
    for (a, b), verbs in findings.second.items():
        counts[at[b], at[a]] = len(verbs)
    side = max(3.4, 1.6 + 0.3 * size)
    figure = Figure(figsize=(side, side), dpi=DPI, facecolor=LIGHT.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ramp = LinearSegmentedColormap.from_list("shared", [LIGHT.paper, LIGHT.novel])
    axes.imshow(counts, cmap=ramp, vmin=0, vmax=max(counts.max(), 1))
    axes.plot([-0.5, size - 0.5], [-0.5, size - 0.5], color=LIGHT.muted, linewidth=0.8)
    axes.set_xticks(range(size), roots, rotation=90, fontsize=8, color=LIGHT.ink)
    axes.set_yticks(range(size), roots, fontsize=8, color=LIGHT.ink)
    axes.tick_params(length=0)
    title = "Number of shared verbs\n◥ synonyms of both   ◣ also synonyms of synonyms"
    axes.set_title(title, fontsize=9, color=LIGHT.ink, loc="left")
    for row, column in np.argwhere(counts > 0):
        ink = LIGHT.paper if counts[row, column] > 0.6 * counts.max() else LIGHT.ink
        axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=7, color=ink)
    return figure
