"""The golden file: what each run of `train_methods.py` lost at every step and scored in its test.

`python tests/end_to_end/golden.py FOLDER` writes it anew from the runs that `train_methods.py FOLDER` left. Do that
only for a change that is meant to alter results, and say in the commit why it does.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from train_methods import RUNS

GOLDEN = Path(__file__).with_name("golden.txt")


def machine():
    """What decides the bits of a sum beside the code: PyTorch's release, the processor and the vector units it has.

    Libraries choose their kernels by both; a virtual machine may hide a unit (AMX) of the same processor.
    """
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    units = " ".join(sorted(flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx", "fma"))))
    processor = ".".join(facts.get(name, "?") for name in ("vendor_id", "cpu family", "model"))
    return f"torch {torch.__version__.split('+')[0]}, {processor}, {hashlib.sha256(units.encode()).hexdigest()[:8]}"


def lines_of(folder):
    """A line a number, `RUN WHAT VALUE`: the losses in order, then the scores in percent."""
    for run in RUNS:
        logged = map(json.loads, (folder / run / "metrics.jsonl").read_text().splitlines())
        for line in logged:
            for name in sorted(name for name in line if name.startswith("loss")):
                yield f"{run} step-{line['step']}-{name} {line[name]!r}"
        results = json.loads((folder / run / "results.json").read_text())
        for part in ("base", "novel"):
            yield f"{run} {part}-accuracy {results[part]['accuracy']!r}"
        for number, scores in enumerate(results["srt"]["runs"]):
            yield f"{run} srt-{number}-f1 {scores['f1']!r}"


def read():
    """The machine that wrote the file, and its numbers by name."""
    first, *lines = GOLDEN.read_text().splitlines()
    return first.removeprefix("# "), numbers(lines)


def numbers(lines):
    """`{"ace step-1-loss": 4.2, ...}`"""
    split = (line.rsplit(" ", 1) for line in lines)
    return {name: float(value) for name, value in split}


if __name__ == "__main__":
    GOLDEN.write_text("\n".join([f"# {machine()}", *lines_of(Path(sys.argv[1]))]) + "\n")
