"""How long does the report of a run with hundreds of classes take, how large is its page, and when is it first seen?

    python benchmarks/bench_report.py --classes 400               # rows for results/report.csv
    python benchmarks/bench_report.py --classes 400 --frames      # with a frame of each class, as a run has them

The run is made of random numbers: 60 % base actions, 13 test clips a class, ten label sets, ten phrases an action,
1,000 logged steps. `--frames`: every clip is the same four seconds (256 pixels high, H.264) with the detail of a
photograph. `cpu_time` is that of the CPU, which other work on the machine hardly lengthens. `first_view` is the time
from opening the file in a fresh tab of headless Chromium to its first contentful paint (takes playwright). The row
`matplotlib` is of commit 9147e68, which drew every figure twice, as PNG, and no frames.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import av
import numpy as np
from common import Row, append
from playwright.sync_api import sync_playwright

from ace_dist.data.shards import ClipRecord
from ace_dist.evaluate.caveats import chance_scores, mean_of_both
from ace_dist.evaluate.examples import Frames
from ace_dist.evaluate.metrics import srt_summary
from ace_dist.evaluate.protocols import accuracy_and_f1
from ace_dist.evaluate.report import write_report

RESULTS = Path(__file__).parent / "results"
CLIPS, SETS, PHRASES, STEPS, WIDTH = 13, 10, 10, 1000, 64
HIGH, WIDE, FPS, SECONDS = 256, 456, 25, 4  # of the clip
VIEWS = 5  # of the page
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


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


def clip(path: Path, rng: np.random.Generator) -> bytes:
    """A picture whose amplitudes fall with the frequency, as those of photographs do, and that moves."""
    frequencies = np.hypot(np.fft.fftfreq(2 * HIGH)[:, None], np.fft.fftfreq(2 * WIDE))
    frequencies[0, 0] = 1
    detail = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, 2 * HIGH, 2 * WIDE))) / frequencies).real
    detail = detail[:1] + 0.3 * detail  # channels that are alike
    picture = np.clip(128 + 50 * detail / detail.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDE, HIGH, "yuv420p", 16
        for k in range(FPS * SECONDS):
            part = np.ascontiguousarray(picture[k : k + HIGH, 2 * k : 2 * k + WIDE])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def frames(folder: Path, rng: np.random.Generator) -> Frames:
    """The same clip for every id of the run."""
    content = clip(folder / "clip.mp4", rng)
    found = json.loads((folder / "predictions.json").read_text())
    fields: dict[str, Any] = {"shard": "", "offset": 0, "size": len(content), "frames": FPS * SECONDS, "fps": FPS}
    fields |= {"width": WIDE, "height": HIGH, "segment_start_s": 0.0, "segment_end_s": float(SECONDS), "sha256": ""}
    fields |= {"verb": "lift", "object": "cup", "split": "test"}
    ids = [key for part in ("base", "novel") for key in found[part]["ids"]]
    records = {key: ClipRecord(key=key, group=key, **fields) for key in ids}
    return Frames(records, SimpleNamespace(read=lambda record: content))  # type: ignore[arg-type]


def first_views(page: Path) -> list[float]:
    """Seconds from opening the page to its first contentful paint."""
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        found = []
        for _ in range(VIEWS):
            tab = chromium.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.as_uri())
            found.append(tab.wait_for_function(PAINT).json_value() / 1000)
            tab.close()
        chromium.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--frames", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "report.csv")
    settings = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder, rng, settings.classes)
        shown = frames(folder, rng) if settings.frames else None
        with patch.object(Frames, "of_run", lambda run, shards: shown) if shown else nullcontext():
            start_s = time.process_time()
            page = write_report(folder)
            taken_s, size = time.process_time() - start_s, page.stat().st_size / 1e6
        views = first_views(page)
    place = ("report", "ours", "random run, frames" if settings.frames else "random run")
    measured = (("cpu_time", "s", [taken_s]), ("page", "MB", [size]), ("first_view", "s", views))
    rows = [Row(*place, metric, unit, "classes", settings.classes, values) for metric, unit, values in measured]
    append(settings.output, rows, "cpu")
    print(f"{settings.classes} classes: {taken_s:.1f} s, {size:.2f} MB, first view {np.median(views):.2f} s")


if __name__ == "__main__":
    main()
