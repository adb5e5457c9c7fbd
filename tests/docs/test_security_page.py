"""SECURITY.md: every dependency has a reason and its own licence, every promise a test, every test a promise."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
ROWS = re.findall(
    r"^\| ([\w-]+(?:, [\w-]+)*) \| (.+) \| ([\w. -]+) \|$", PAGE.partition("## What it depends on")[2], re.M
)
LICENCES = {name: licence for names, _, licence in ROWS for name in names.split(", ") if name != "package"}
WORDS = {
    "PSF-2.0": "Python Software Foundation",
    "MIT-CMU": "MIT",
    "MPL-2.0 and MIT": "MPL",
}  # in a package's own words


def requirements():
    """The names in `pyproject.toml`, of all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {re.match(r"[\w.-]+", line)[0] for line in lines} - {"ace-dist"}


def test_every_dependency_has_a_reason_and_a_licence():
    assert set(LICENCES) == requirements()


@pytest.mark.parametrize("name", sorted(LICENCES))
def test_the_licence_is_the_packages_own(name):
    """As its installed files state it."""
    try:
        facts = metadata(name)
    except PackageNotFoundError:
        pytest.skip("an extra that is not installed")
    classifiers = [line for line in facts.get_all("Classifier") or [] if line.startswith("License")]
    said = " ".join(filter(None, [*classifiers, facts.get("License-Expression"), facts.get("License")]))
    if not said:
        pytest.skip("it states none in its metadata")
    word = WORDS.get(LICENCES[name], LICENCES[name].partition("-")[0])
    assert word in said


def test_every_promise_names_tests_that_exist_and_none_is_forgotten():
    named = set(re.findall(r"`(?:[\w/]+/)?(test_\w+)(?:\.py)?`", PAGE))
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert named <= files, named - files
    attacks = {path.stem for path in (ROOT / "tests" / "security").glob("test_*.py")}
    assert attacks <= named, f"SECURITY.md does not name {attacks - named}"
