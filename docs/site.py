"""Hooks of the documentation site (mkdocs.yml): pages of other folders, links between them, pages made from the code.

A page of this folder keeps its name on the site, one of another folder its path in the repository; README.md is the
first page. Links are written for the repository. A link to a file that is not on the site, such as source code, becomes
its text.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
SHOWN = (".md", ".png")
PYTHON = {  # names that outside code may rely on
    "Using a trained model": ("ace_dist.classifier.Classifier", "ace_dist.classifier.Classification"),
    "Long videos": (
        "ace_dist.segment.timeline.Timeline",
        *(f"ace_dist.segment.metrics.{name}" for name in ("frame_accuracy", "edit_score", "f1_at")),
    ),
    "Concepts": (
        "ace_dist.concepts.actions.Action",
        "ace_dist.concepts.trees.SynonymTrees",
        "ace_dist.concepts.sampler.ConceptSampler",
        "ace_dist.concepts.sampler.ConceptDraw",
    ),
    "The loss": (
        "ace_kernels.concept.concept_similarity",
        "ace_kernels.concept.concept_cross_entropy",
        "ace_kernels.concept_layout.ConceptLayout",
    ),
    "Metrics": tuple(
        f"ace_dist.evaluate.metrics.{name}" for name in ("accuracy", "macro_f1", "harmonic_mean", "srt_summary")
    ),
}
ABOUT_SETTINGS = """\
Every setting of a run, as `key=value` on the command line or in a file of `configs/`, and of a job (`cluster.`). Units
stand in names and meanings. These are the defaults of the code: an experiment, a method or a recipe sets others, and
`ace train ... --cfg` prints what a run has. `...` must be given."""


def name_on_site(path: str) -> str:
    """Of a file of the repository."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def linked(path: str) -> set[str]:
    """Pages and pictures of the repository that a page links to, and theirs; the page itself included."""
    found, open_pages = {path}, [path]
    while open_pages:
        page = open_pages.pop()
        for _, _, link in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition("#")[0]))
            if target.endswith(SHOWN) and target not in found and (ROOT / target).is_file() and "://" not in link:
                found.add(target)
                open_pages += [target] if target.endswith(".md") else []
    return found


def on_files(files: Files, config: Any) -> Files:
    """Add what lies elsewhere or is made here."""
    for path in linked("README.md") | {"CHANGELOG.md"}:
        if not path.startswith("docs/"):
            files.append(File.generated(config, name_on_site(path), content=(ROOT / path).read_bytes()))
    for name, text in (("settings", settings_page()), ("commands", commands_page()), ("python", python_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn the repository's links into the site's."""
    here = page.file.src_uri
    in_docs = (ROOT / "docs" / here).exists()
    source = "README.md" if here == "index.md" else f"docs/{here}" if in_docs else here

    def follow(found: re.Match[str]) -> str:
        sign, text, link = found.groups()
        path, anchor = link.partition("#")[::2]
        if "://" in link or not path:
            return found[0]
        target = name_on_site(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        if files.get_file_from_path(target) is None:
            return text
        relative = os.path.relpath(target, posixpath.dirname(here) or ".")
        return f"{sign}[{text}]({relative}{'#' if anchor else ''}{anchor})"

    return markdown if here.startswith("reference/") else LINK.sub(follow, markdown)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def settings_page() -> str:
    """Every setting of a run and of a job, with its default and meaning, from the typed configuration."""
    from ace_dist.cluster.profiles import ClusterConfig
    from ace_dist.config.schema import Config
    from ace_dist.config.settings import documented_fields

    lines = [f"# Settings\n\n{ABOUT_SETTINGS}"]
    section = ""
    for name, default, note in [*documented_fields(Config), *documented_fields(ClusterConfig, "cluster.")]:
        head = name.rpartition(".")[0] or "A run"
        if head != section and (head != "dataset" or section == "A run"):
            lines.append(f"\n## {head}\n\n| setting | default | meaning |\n|---|---|---|")
            section = head
        lines.append(f"| `{name}` | `{cell(default)}` | {cell(note)} |")
    return "\n".join(lines)


def commands_page() -> str:
    """What `ace NAME --help` prints, for all names."""
    from ace_dist.cli import COMMANDS, help_text

    parts = ["# Commands\n\nWhat `ace NAME --help` prints."]
    parts += [f"## ace {name}\n\n```text\n{help_text(name).strip()}\n```" for name in COMMANDS]
    return "\n\n".join(parts)


def python_page() -> str:
    """Docstrings of the public names."""
    parts = ["# Python\n\n`B` clips, `T` frames, `C` classes, `S` phrases, `D` width of the shared space."]
    for title, names in PYTHON.items():
        parts += [f"## {title}", *(f"::: {name}" for name in names)]
    return "\n\n".join(parts)
