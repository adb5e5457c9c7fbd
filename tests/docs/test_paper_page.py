"""`configs/PAPER.md`: every file, function, test and setting that it names exists; every table and method is on it."""

import re
from pathlib import Path

from ace_dist.config import assets_dir, choices, known_keys

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "configs" / "PAPER.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`]+)`", PAGE)


def test_every_name_of_the_page_is_there():
    """`FILE::NAME` is defined in FILE; a file or folder exists."""
    missing = []
    for word in CODE:
        path, _, name = word.partition("::")
        if not re.fullmatch(r"(ace_dist|kernels|configs|tests|launchers|benchmarks)/[\w./-]+", path.split(" ")[0]):
            continue
        file = ROOT / path.split(" ")[0]
        if not file.exists():
            missing.append(path)
        elif name and not re.search(rf"^(def|class) {name}\b", file.read_text(encoding="utf-8"), re.MULTILINE):
            missing.append(word)
    assert not missing
    assert sum("::test_" in word for word in CODE) > 50, "the page was read"


def test_every_setting_of_the_page_is_one():
    settings = {
        word for word in CODE if re.fullmatch(r"(method|evaluation|dataset|model|training|loader)\.[\w.]+", word)
    }
    assert len(settings) > 8 and not settings - set(known_keys())


def test_every_equation_method_table_and_figure_is_on_the_page():
    """The numbered equations that the code holds, the methods of the paper, all tables and figures."""
    assert set(re.findall(r"^\| Eq\. (\d)", PAGE, re.MULTILINE)) == set("3456789")
    for method in choices("method"):
        assert f"configs/method/{method}.yaml" in PAGE or method.startswith(("ace_no_", "ace_sigmoid")), method
    for path in (assets_dir() / "tables").glob("*.yaml"):
        assert f"tables/{path.name}`" in PAGE, path.name
