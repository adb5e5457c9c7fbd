"""The Dockerfile, which no test can build: what it copies reaches it and makes a whole wheel, and its extras exist."""

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COPIED = [name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]


def test_what_is_copied_is_let_through_and_makes_a_whole_wheel(tmp_path):
    """`.dockerignore` leaves all out but what it names; configurations and kernels are in the wheel."""
    pytest.importorskip("hatchling", reason="pip install hatchling")
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert ignore[0] == "*" and set(COPIED) == allowed
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    subprocess.run(build, check=True, cwd=tmp_path)
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as wheel:
        names = wheel.namelist()
    for pattern in (
        "ace_dist/cli/*.py",
        "ace_dist/configs/experiment/demo.yaml",
        "ace_dist/assets/weights/*",
        "ace_kernels/*.py",
    ):
        assert fnmatch.filter(names, pattern), pattern


def test_the_extras_exist_and_the_images_are_those_of_the_first_lines():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = {extra for words in re.findall(r"'\.\[(.+)\]'", DOCKERFILE) for extra in words.split(",")}
    assert asked and asked <= set(extras)
    assert set(re.findall(r"--target (\w+)", DOCKERFILE)) == set(
        re.findall(r"^FROM base AS (\w+)", DOCKERFILE, re.MULTILINE)
    )
