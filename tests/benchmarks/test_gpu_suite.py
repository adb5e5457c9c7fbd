"""The suite for a borrowed GPU machine: its sections run at toy size, and a bad one costs itself alone."""

import contextlib
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "benchmarks" / "gpu_suite.py"


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(str(SUITE.parent))
    return pytest.importorskip("gpu_suite")


def test_all_sections_run_on_a_cpu(tmp_path):
    """Every section finishes with rows, or for tests a count; the table has them and keeps its length."""
    command = [sys.executable, str(SUITE), "--device", "cpu", "--quick", "--budget", "3000", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    states = json.loads((tmp_path / "suite.json").read_text())
    assert list(states) == ["tests", "step", "e2e", "loading", "operators", "attention", "trunk"]
    assert {state["status"] for state in states.values()} == {"finished"}
    for name in list(states)[1:]:
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            assert all(float(row["p50"]) >= 0 for row in csv.DictReader(file))
    printed = done.stdout[done.stdout.index("rows and logs in") :].splitlines()
    assert len(printed) <= 60 and any("passed" in line for line in printed)


def test_a_slow_section_and_a_failing_one_cost_themselves(suite, tmp_path):
    """At its limit a section ends with the processes that it started, and what it had written stays."""
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(61.25)'])"
    rows = "name,mode,variant,metric,unit,p50,config_json\\nx,m,v,speed,ms,2,{}\\n"
    slow = f"{child}; open(sys.argv[1], 'w').write('{rows}'); print('begun', flush=True); time.sleep(60)"
    known = {
        "slow": suite.Section(1, (("-c", slow, "OUTPUT"),), ("speed",)),
        "bad": suite.Section(1, (("-c", "raise SystemExit('no such thing')"), ("-c", "print('next')"))),
    }
    started = time.monotonic()
    states = {name: suite.run_section(name, section, tmp_path, 5.0) for name, section in known.items()}
    assert time.monotonic() - started < 50  # and not the minute that the section sleeps
    assert states["slow"]["status"] == "cut off after 5 s" and states["bad"]["status"] == "failed with 1"
    lines = "\n".join(suite.table(states, known, tmp_path, "cpu"))
    assert "speed [ms]" in lines and "begun" in lines and "no such thing" in lines and "next" in lines
    assert not list(running("time.sleep(61.25)"))


def running(words):
    """Command lines of processes that contain `words`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words in (line := path.read_text(errors="replace")):
                yield line


def test_the_table_is_cut(suite, tmp_path):
    """However many rows there are."""
    header = "name,mode,variant,metric,unit,p50,config_json"
    for name in "abcdefg":
        rows = [f"x,mode{i},v,speed,ms,{i},{{}}" for i in range(50)]
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *rows]) + "\n")
    state = {"status": "finished", "seconds": 1.0, "limit_s": 2.0}
    known = {name: suite.Section(1, (), ("speed",)) for name in "abcdefg"}
    lines = suite.table(dict.fromkeys(known, state), known, tmp_path, "cpu")
    assert len(lines) == suite.TABLE_LINES and "lines more" in lines[-1]
