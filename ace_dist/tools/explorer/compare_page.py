"""Two runs: their scores side by side, and below the same clip asked of both."""

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from ace_dist.evaluate.run_files import read_results
from ace_dist.tools.explorer.clip_page import ClipPage, build_clip_page
from ace_dist.tools.explorer.session import Explorer
from ace_dist.utils.errors import UserError

ROWS = {
    "base": "Base actions (trained on)",
    "novel": "Novel actions (never trained on)",
    "hm": "Harmonic mean of both",
    "srt": "Robustness test, novel: mean ± spread over its label sets",
}


def scores_html(explorers: Sequence[Explorer]) -> str:
    """Accuracies in percent, a column a run. Raises `UserError` for a run without results."""
    results = [read_results(explorer.run) for explorer in explorers]
    head = "".join(f'<th scope="col">{escape(explorer.name)}</th>' for explorer in explorers)
    rows = "".join(
        f'<tr><th scope="row">{title}</th>{"".join(f"<td>{score_text(found[part])}</td>" for found in results)}</tr>'
        for part, title in ROWS.items()
    )
    return (
        '<div class="ace"><h2>Two runs side by side</h2><div class="ace-scroll" tabindex="0" role="region" '
        'aria-label="Scores of both runs"><table class="ace-srt ace-scores"><thead><tr><th scope="col">accuracy, %</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def score_text(scores: Any) -> str:
    if scores is None:
        return "–"
    if "accuracy_mean" in scores:
        return f"{scores['accuracy_mean']:.1f} ± {scores['accuracy_std']:.1f}"
    return f"{scores['accuracy']:.1f}"


def build_compare_page(page: ClipPage) -> None:
    """The components, within a tab."""
    try:
        scores = scores_html(page.explorers)
    except UserError as error:
        scores = f'<div class="ace"><p class="ace-doubt">{escape(page.desk.refusal(error))}</p></div>'
    gr.HTML(scores, apply_default_css=False)
    build_clip_page(page)
