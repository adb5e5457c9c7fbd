"""How long does the report of a run with hundreds of classes take, and how large is its page?

    python benchmarks/bench_report.py --classes 400      # rows for results/report.csv

The run is made of random numbers: 60 % base actions, 13 test clips a class, ten label sets, ten phrases an action,
1,000 logged steps; it has no clips, so no frames are decoded. Time is that of the CPU, which other work on the machine
hardly lengthens. The row `matplotlib` is of commit 9147e68, which drew every figure twice, as PNG.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, append

from ace_dist.evaluate.caveats import chance_scores, mean_of_both
from ace_dist.evaluate.metrics import srt_summary
from ace_dist.evaluate.protocols import accuracy_and_f1
from ace_dist.evaluate.report import write_report

RESULTS = Path(__file__).parent / "results"
CLIPS, SETS, PHRASES, STEPS, WIDTH = 13, 10, 10, 1000, 64


def predictions(rng: np.random.Generator, classes: list[str]) -> dict[str, Any]:
    labels = np.repeat(np.arange(len(classes)), CLIPS)
    guesses = np.where(rng.random(len(labels)) < 0.6, labels, rng.integers(0, len(classes), len(labels)))
    chances = rng.dirichlet(np.ones(len(classes)), len(labels)).round(6)
    ids = [f"{classes[0]}-{index}" for index in range(len(labels))]
    found = {"classes": classes, "ids": ids, "labels": labels.tolist(), "predictions": guesses.tolist()}
    return {**found, "probabilities": chances.tolist()}


def write_run(folder: Path, rng: np.random.Generator, count: int) -> None:
    names = [f"verb{index} thing" for index in range(count)]
    base = round(0.6 * count)
    parts: dict[str, Any] = {"base": predictions(rng, names[:base]), "novel": predictions(rng, names[base:])}
    parts |= {"srt": [predictions(rng, names[base:]) for _ in range(SETS)], "srt_base": [], "gzsl": None}
    scores = {part: accuracy_and_f1(parts[part]) for part in ("base", "novel")}
    results = {"method": "ace", "dataset": "random", "fold": None, "seed": 0, **scores, "srt_base": None, "gzsl": None}
    results |= {"hm": mean_of_both(scores["base"], scores["novel"]), "chance": chance_scores(parts), "notes": []}
    results["srt"] = srt_summary([accuracy_and_f1(run) for run in parts["srt"]])
    files = {"results": results, "predictions": parts, "environment": {"command": "none", "hardware": "none"}}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text("{}\n")
    lines = (
        {"step": n, "loss": 5 / (n + 1), "lr_video": 0.1, "clips_per_s": 9.0, "data_wait_share": 0.1}
        for n in range(STEPS)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = rng.normal(size=(2, count * PHRASES, WIDTH))
    before, after = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    actions = np.repeat(names, PHRASES)
    phrases, flags = [f"phrase {n}" for n in range(len(actions))], np.arange(len(actions)) < base * PHRASES
    np.savez(folder / "concept_space.npz", before=before, after=after, phrases=phrases, actions=actions, base=flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--output", type=Path, default=RESULTS / "report.csv")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder), np.random.default_rng(0), settings.classes)
        start_s = time.process_time()
        page = write_report(Path(folder))
        taken_s, size = time.process_time() - start_s, page.stat().st_size / 1e6
    place = ("report", "ours", "random run"), ("classes", settings.classes)
    rows = [Row(*place[0], "cpu_time", "s", *place[1], [taken_s]), Row(*place[0], "page", "MB", *place[1], [size])]
    append(settings.output, rows, "cpu")
    print(f"{settings.classes} classes: {taken_s:.1f} s, {size:.2f} MB")


if __name__ == "__main__":
    main()
