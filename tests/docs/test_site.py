"""The documentation site: every page is in its navigation, every setting has a meaning. `make docs` builds it."""

import re
from pathlib import Path

import yaml

from ace_dist.cluster.profiles import ClusterConfig
from ace_dist.config.schema import Config
from ace_dist.config.settings import documented_fields

ROOT = Path(__file__).resolve().parents[2]


def leaves(item):
    if isinstance(item, list | dict):
        return [leaf for part in (item if isinstance(item, list) else item.values()) for leaf in leaves(part)]
    return [item]


def test_every_page_is_in_the_navigation_once():
    shown = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(shown) == len(set(shown))
    made = {"index.md", "reference/commands.md", "reference/settings.md", "reference/python.md"}
    assert {page for page in shown if "/" not in page} - made == {
        *(path.name for path in ROOT.glob("docs/*.md")),
        *(path.name for path in ROOT.glob("*.md") if path.name in ("SECURITY.md", "CHANGELOG.md")),
    }
    assert all((ROOT / page).is_file() for page in shown if "/" in page and page not in made)


def test_every_setting_has_a_meaning():
    """The reference of settings, and `--help`, are made of the comments behind the fields."""
    rows = [*documented_fields(Config), *documented_fields(ClusterConfig, "cluster.")]
    assert len(rows) > 150 and [name for name, _, note in rows if not note] == []
    assert ("dataset.clip.sampling", "window") in {row[:2] for row in rows}, "a default on a line of its own"
    assert ("profile", "false", "record a few steps: see training.profile") in rows
    assert ("dataset.shards", "...") in {row[:2] for row in rows} and ("init_from", "null") in {row[:2] for row in rows}


def test_the_licence_page_tells_of_the_patent_application_and_of_the_weights():
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    for fact in ("US 2026/0073671 A1", "2026-03-12", "no legal advice", "CC-BY-NC-SA 3.0", "CC-BY-NC 4.0"):
        assert fact in page
    from ace_dist.models.convert.layouts import KINDS

    for kind in KINDS.values():  # what an import prints is on the page
        assert all(licence in page for licence in re.findall(r"CC-BY-[A-Z-]+ \d\.\d|\bMIT\b", kind.licence))
