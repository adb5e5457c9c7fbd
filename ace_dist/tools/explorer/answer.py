"""What the model says of a clip, as HTML: film, verdict, bars, the words that vote, and the robustness test."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from ace_dist.tools.explorer.markup import button
from ace_dist.tools.explorer.session import Clip, Look
from ace_dist.tools.explorer.words import Words
from ace_dist.utils.pictures import data_uri, jpeg

FIRST_LABELS = 8  # that are shown before the others are asked for
FRAMES = 8  # that are shown of those that the model saw
KINDS = {True: ("base", "trained on"), False: ("novel", "never trained on")}


def kind_html(base: bool) -> str:
    name, words = KINDS[base]
    return f'<span class="kind {name}">{words}</span>'


def clip_html(clip: Clip, caption: str) -> str:
    """The film; `caption` is HTML."""
    return (
        f'<div class="ace-clip"><video src="{data_uri("video/webm", clip.film)}" controls loop muted playsinline '
        f'aria-label="the clip"></video><p>{caption}</p></div>'
    )


def frames_html(frames_THWC: npt.NDArray[np.uint8]) -> str:
    """Some of the frames that the model saw, in order."""
    chosen = np.linspace(0, len(frames_THWC) - 1, min(FRAMES, len(frames_THWC))).round().astype(int)
    pictures = "".join(
        f'<img src="{data_uri("image/jpeg", jpeg(frames_THWC[i], 85))}" alt="frame {i + 1}">' for i in chosen
    )
    size = "x".join(map(str, frames_THWC.shape[2:0:-1]))
    return (
        f'<div class="ace-seen"><h3>What the model saw <small>{len(chosen)} of {len(frames_THWC)} frames, {size} '
        f'pixels</small></h3><div class="ace-frames">{pictures}</div></div>'
    )


def verdict_html(look: Look, error_rate: float, truth: str | None = None) -> str:
    """The answer in a sentence, and each reason to doubt it."""
    best = look.labels[0]
    what = (
        f'<p class="what">None of these</p><p>The nearest is <b>{escape(best.label)}</b>, {best.probability:.0%} among '
        "these labels alone.</p>"
        if look.is_none
        else f'<p class="what">{escape(best.label)}</p><p>{best.probability:.0%} among these labels.</p>'
    )
    if truth is not None and (look.is_none or best.label != truth):
        what += f"<p>The clip shows <b>{escape(truth)}</b>.</p>"
    notes = "".join(f'<p class="ace-doubt">{escape(note)}</p>' for note in doubts(look, error_rate))
    return f'<div class="ace-verdict" role="status">{what}{notes}</div>'


def doubts(look: Look, error_rate: float) -> list[str]:
    found = []
    if look.fits is False:
        found.append(
            f"By the run's calibration no label fits; it is wrong about {error_rate:.0%} of clips that show what was "
            "trained on."
        )
    if look.floor is not None and look.cosine < look.floor:
        found.append(
            f"The best cosine, {look.cosine:.2f}, is below {look.floor:.2f}, which 95 % of base clips reach with their "
            "own label."
        )
    if look.unknown:
        names = ", ".join(look.unknown[:3]) + (f" and {len(look.unknown) - 3} more" if len(look.unknown) > 3 else "")
        found.append(
            f"No synonym tree knows the verb of {names}: such a label stands alone, and its percentage says only that "
            "it is nearer than the others, not that it is right."
        )
    return found


def bars_html(look: Look, chosen: str, truth: str | None, every: bool) -> str:
    """A bar for each label, most probable first; pressing one shows its words."""
    shown = look.labels if every else look.labels[:FIRST_LABELS]
    rows = "".join(
        "<li>"
        + button(
            f'<span class="ace-word{" truth" * (item.label == truth)}">{escape(item.label)}</span>'
            f'<b>{item.probability:.1%}</b><i style="--share:{100 * item.probability:.1f}%"></i>',
            "label",
            item.label,
            item.label == chosen,
        )
        + "</li>"
        for item in shown
    )
    more = len(look.labels) - len(shown)
    rest = f'<p class="ace-more">{button(f"Show {more} more labels", "every", "1")}</p>' if more else ""
    return f'<ol class="ace-bars">{rows}</ol>{rest}'


def words_html(label: str, words: Words, looks: Sequence[Look]) -> str:
    votes = [dict(next(item.votes for item in look.labels if item.label == label)) for look in looks]
    return chips_html(label, words, votes, "clip")


def chips_html(label: str, words: Words, votes: Sequence[Mapping[str, float]], what: str) -> str:
    """The phrases of a label as chips that can be switched off, each with its vote (one a run), and a field to add."""
    chips = "".join(
        "<li>"
        + button(
            f"<span>{escape(phrase)}</span>"
            + (f"<small>{' / '.join(f'{vote[phrase]:+.2f}' for vote in votes)}</small>" if on and votes else ""),
            "word",
            phrase,
            on,
        )
        + "</li>"
        for phrase, on in words[label]
    )
    field = escape(f"another phrase for {label}")
    return (
        f'<div class="ace-words"><h3>Words that vote for {escape(label)} <small>cosine with the {what}; press one to '
        f'switch it off</small></h3><ul class="ace-chips">{chips}</ul><form data-do="add"><input maxlength="200" '
        f'aria-label="{field}" placeholder="{field}"><button>Add</button></form></div>'
    )


def robustness_html(runs: Sequence[Sequence[tuple[str, float]]], classes: Sequence[str], truth: str | None) -> str:
    """The label sets of the robustness test, a row each, below the true names of its columns.

    The true label's column comes first: a phone shows two or three.
    """
    order = sorted(range(len(classes)), key=lambda k: classes[k] != truth)
    head = "".join(f'<th scope="col"{" class=true" * (classes[k] == truth)}>{escape(classes[k])}</th>' for k in order)
    rows, right = [], 0
    for number, run in enumerate(runs):
        best = max(range(len(run)), key=lambda k: run[k][1])
        right += classes[best] == truth
        kinds = ["best " * (k == best) + "true" * (classes[k] == truth) for k in order]
        texts = [f"{escape(label)} {share:.0%}" for label, share in (run[k] for k in order)]
        cells = "".join(f'<td class="{kind}">{text}</td>' for kind, text in zip(kinds, texts, strict=True))
        rows.append(f'<tr><th scope="row">{number + 1}</th>{cells}</tr>')
    said = f"The true label, shaded, wins in {right} of {len(runs)}." if truth in classes else ""
    return (
        f"<h3>The same clip under {len(runs)} sets of labels</h3><p>Each row asks for the same actions in other words; "
        f"the winner of a row is bold. {said}</p>"
        '<div class="ace-scroll" tabindex="0" role="region" aria-label="Label sets of the robustness test">'
        f'<table class="ace-srt" id="ace-srt"><thead><tr><th scope="col">set</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
