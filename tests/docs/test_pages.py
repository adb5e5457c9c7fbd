"""Each top-level folder's page names what lives in it, so that a newcomer is not sent to a file that is gone."""

import re
from pathlib import Path

import pytest

from ace_dist.evaluate.run_files import read_results

ROOT = Path(__file__).resolve().parents[2]
HELPERS = {"common.py"}
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md"), *ROOT.glob("[a-z]*/README.md")]


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [("launchers", "*.py"), ("benchmarks", "*.py"), ("configs", "*/"), ("tests", "*/"), ("ace_dist", "*/")],
)
def test_every_entry_is_named_on_its_page(folder, pattern):
    """A new launcher, benchmark, group, test folder or room has a line on the page of its folder; none is left over."""
    page = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    entries = [path for path in (ROOT / folder).glob(pattern) if path.name not in HELPERS and path.name[0] not in "_."]
    present = {path.name for path in entries if path.is_file() or any(path.rglob("*.*"))} - {"results"}
    missing = {name for name in present if f"`{name}`" not in page and f"({name})" not in page}
    assert not missing, f"{folder}/README.md says nothing of {sorted(missing)}"
    if pattern == "*.py":
        named = {word.strip("`(),") for word in page.split() if word.strip("`(),").endswith(".py")}
        assert not {name for name in named if not any((ROOT / part / name).exists() for part in (folder, "."))}


@pytest.mark.parametrize("page", sorted(str(path.relative_to(ROOT)) for path in PAGES))
def test_links_lead_somewhere(page):
    """Links between the pages of the repository; addresses of the web are not asked."""
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if not target.startswith("http")]
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


def test_the_results_of_the_page_of_formats_are_read(tmp_path):
    (block,) = re.findall(r"^```json\n(.*?)^```", (ROOT / "docs/formats.md").read_text(encoding="utf-8"), re.S | re.M)
    (tmp_path / "results.json").write_text(block)
    assert read_results(tmp_path)["srt"]["runs"]
