"""The explorer's pages (Gradio), one a tab.

Nothing is fetched from or sent to another machine: system fonts, no analytics, pictures and films made here.
"""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from fastapi import FastAPI

from ace_dist.evaluate.palette import BLUE
from ace_dist.tools.explorer.clip_page import ClipPage, build_clip_page
from ace_dist.tools.explorer.compare_page import build_compare_page
from ace_dist.tools.explorer.desk import Desk
from ace_dist.tools.explorer.long_videos import LongVideos
from ace_dist.tools.explorer.map_page import MapPage, build_map_page
from ace_dist.tools.explorer.markup import STYLE
from ace_dist.tools.explorer.session import Explorer
from ace_dist.tools.explorer.timeline_page import TimelinePage, build_timeline_page

MOST_VISITORS = 32  # whose clips and words are kept; the oldest go first
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


def build_page(explorers: Sequence[Explorer], videos: Mapping[str, Path]) -> Any:
    """Of a run, or of two that are compared. `videos`: long ones of this machine that the timeline offers."""
    first, desk = explorers[0], Desk([explorer.run for explorer in explorers])
    blocks = gr.Blocks(title=f"ace-dist: {first.name}", analytics_enabled=False, delete_cache=(600, 600))
    blocks.state_session_capacity = MOST_VISITORS
    with blocks:
        about = f"{len(first.task.classes.base)} actions trained on, {len(first.task.classes.novel)} never seen"
        gr.HTML(
            f'<div class="ace ace-title"><h1>{escape(first.title)}</h1><p class="quiet">{about}</p></div>',
            apply_default_css=False,
        )
        with gr.Tab("Clips"):
            build_clip_page(ClipPage(explorers[:1], desk))
        with gr.Tab("Timeline"):
            build_timeline_page(TimelinePage(LongVideos(first, videos), desk))
        with gr.Tab("Concepts") as concepts:
            build_map_page(MapPage(first, desk), concepts)
        if len(explorers) > 1:
            with gr.Tab("Two runs"):
                build_compare_page(ClipPage(explorers, desk))
    return blocks


def build_app(blocks: Any, largest_upload_mb: int) -> Any:
    """The page without what Gradio adds by itself: links, run history, a server in Node, and pages of its API."""
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks.queue(api_open=False, max_size=MOST_VISITORS),
        path="/",
        max_file_size=largest_upload_mb << 20,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        theme=build_theme(),
        css=STYLE,
    )


def build_theme() -> Any:
    """System fonts, and buttons in a blue on which white can be read (5.2 to 1)."""
    theme = gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=["ui-monospace", "monospace"])
    fills = ("button_primary_background_fill", "button_primary_background_fill_hover")
    return theme.set(**{f"{fill}{scheme}": BLUE for fill in fills for scheme in ("", "_dark")})
