"""docs/first_look.ipynb runs from top to bottom, in an empty folder, as Jupyter would run it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = json.loads((ROOT / "docs" / "first_look.ipynb").read_text(encoding="utf-8"))
SHELL = "import subprocess\ndef shell(line):\n    subprocess.run(line, shell=True, check=True)\n"


def as_script(cells):
    """The code cells as one script; `!command {name}` is a command of the shell with a value in it, as in IPython."""
    lines = [line for cell in cells for line in ["", *"".join(cell["source"]).splitlines()]]
    return SHELL + "\n".join(re.sub(r"^!(.*)$", r'shell(f"\1")', line) for line in lines)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path):
    """And its three tables name every label, with probabilities that add up to one."""
    (tmp_path / "ace").write_text(f"#!{sys.executable}\nfrom ace_dist.cli import ace\nraise SystemExit(ace())\n")
    (tmp_path / "ace").chmod(0o755)
    (tmp_path / "cells.py").write_text(as_script([c for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]))
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "cells.py"], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SRT    accuracy" in done.stdout
    tables = done.stdout.partition("SRT    accuracy")[2].strip().split("\n\n")
    shares = [[float(share) for share in re.findall(r"^ *([\d.]+)%", table, re.M)] for table in tables]
    assert len(shares) == 3 and all(len(row) == 4 and sum(row) == pytest.approx(100, abs=0.3) for row in shares)


def test_it_carries_no_results():
    """They would grow old; a reader's own are seen when the cells run."""
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in NOTEBOOK["cells"])
