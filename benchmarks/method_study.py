"""Does a recipe chosen on seen actions alone win under other words? The runs of `results/method/README.md`.

    python benchmarks/method_study.py stage=screening                                  # every missing row, in order
    python benchmarks/method_study.py stage=screening cell='long 0.4 1 clip' candidate=distil_1 seed=100
    python benchmarks/method_study.py stage=screening report=true

A row is one command and one line of `results/method/runs.csv`. What is there is not run again; a run that was stopped
goes on. Clips and towers of a cell are made when they are missing. After `limit_s` no run begins.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ace_dist.config.settings import parse_settings
from ace_dist.evaluate.run_files import read_metrics, read_results
from ace_dist.tools.study.report import markdown_table
from ace_dist.tools.study.rows import SCORES, StudyRow, found_part, mean_over, paired_difference
from ace_dist.tools.study.selection import SIGNALS, CellRow, rank_correlations, read_cell_rows, write_cell_rows
from ace_dist.utils.errors import ConfigError, RunError
from ace_dist.utils.reading import read_object

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "method" / "runs.csv"
MINILM = ("model.text.tower=minilm", "model.text.width=384", "model.text.depth=6", "model.text.heads=12")
FLAT = "dataset.world.corpus.synonym_tail=[1,1,1,1,1,1,1,1]"
SCREENING_CELLS = ("long 0.4 1 clip", "long 0.4 0 clip", "flat 0 1 clip")
FRESH_CELLS = ("flat 0.2 0.75 clip", "long 0.2 0.75 minilm")
FULL_CELLS = (
    "long 0.4 1 clip", "long 0.4 0.5 clip", "long 0.4 0 clip", "flat 0.4 1 clip", "long 0 1 clip", "flat 0 1 clip",
    "long 0.4 1 minilm", "long 0.4 0 minilm", "flat 0.4 1 minilm", "long 0 1 minilm", "flat 0 1 minilm", *FRESH_CELLS,
)  # fmt: skip
STAGES = {  # signal: the full test again, with the signal on, to compare selection rules
    "screening": (SCREENING_CELLS, range(100, 103)), "full": (FULL_CELLS, range(10)), "signal": (FULL_CELLS, range(10)),
}  # fmt: skip
SIGNAL = (
    "evaluation.validation_share=0.25", "evaluation.validation_words=0.4", "evaluation.every_steps=1000000",
)  # fmt: skip
WHOLE = (
    "model.video.trained_blocks=6",
    "model.text.trained_layers=2",
    "training.lr_video=0.02",
    "training.lr_text=0.002",
)
CANDIDATES: dict[str, tuple[str, ...]] = {  # the reference first; the values are the protocol's
    "ace": (),
    "interpolate_0.8": ("evaluation.interpolate=0.8",),
    "interpolate_0.6": ("evaluation.interpolate=0.6",),
    "ema_0.99": ("training.ema_decay=0.99",),
    "ema_0.999": ("training.ema_decay=0.999",),
    "swa_0.75": ("training.swa_start=0.75",),
    "l2_sp_0.01": ("method.l2_sp=0.01",),
    "l2_sp_0.1": ("method.l2_sp=0.1",),
    "distil_1": ("method.distil=1",),
    "distil_10": ("method.distil=10",),
    "layer_decay_0.75": ("training.layer_decay=0.75", "model.video.trained_blocks=6"),
    "layer_decay_0.5": ("training.layer_decay=0.5", "model.video.trained_blocks=6"),
    "full_depth": WHOLE,
    "shadow_0_0.9": ("method.shadow_band=[0,0.9]",),
    "shadow_0.5_0.9": ("method.shadow_band=[0.5,0.9]",),
    "margin_0.1": ("method.margin=0.1",),
    "margin_0.3": ("method.margin=0.3",),
}
ROWS = ("ace", "procvlr", "vifi_ft", "vifi_pr", "text4vis", "bike", "lavila")  # of Table 1, for the full test


@dataclass
class Settings:
    stage: str = "screening"  # screening | full | signal
    cell: str = ""  # one cell; empty: all of the stage
    candidate: str = ""  # one candidate, or in the full test one method; empty: all
    seed: int | None = None  # one seed; null: all of the stage
    folder: str = "runs/method"  # of clips, towers and runs
    limit_s: float = 0.0  # begin no run after so many seconds; 0: no limit
    dry_run: bool = False  # print the commands that are missing, and stop
    report: bool = False  # print the tables of what is there, and stop


@dataclass(frozen=True)
class PlannedRow:
    """A run of the study; `name` is a candidate of `CANDIDATES` or a method of Table 1."""

    stage: str
    cell: str
    name: str
    seed: int

    def settings(self, folder: Path) -> list[str]:
        """Of `launchers/train.py`."""
        tail, noise, shift, tower = self.cell.split()
        method = ["method=ace", *CANDIDATES[self.name]] if self.name in CANDIDATES else [f"method={self.name}"]
        chosen = [*SIGNAL, f"evaluation.test={str(self.stage == 'signal').lower()}"] if self.stage != "full" else []
        towers = folder / "towers" / f"{tail}_{noise}_{tower}"
        shipped = (tail, noise, tower) == ("long", "0.4", "clip")
        weights = [f"model.{side}.weights={towers / side}.safetensors" for side in ("video", "text")]
        text = [*MINILM, "training.lr_text=0.002"] if tower == "minilm" else []
        return [
            "experiment=demo", f"seed={self.seed}", "training.precision=bf16", "loader.threads=1",
            f"dataset.shards={folder / 'shards' / shift}", f"run={self.run(folder)}",
            *([] if shipped else weights), *text, *chosen, *method,
        ]  # fmt: skip

    def run(self, folder: Path) -> Path:
        return folder / self.stage / self.cell.replace(" ", "_") / f"{self.name}_{self.seed}"


def planned(settings: Settings) -> Iterator[PlannedRow]:
    """The rows asked for: seeds last, so that what is done first compares all candidates. Raises `ConfigError`."""
    if settings.stage not in STAGES:
        raise ConfigError(f"stage={settings.stage} is not one of {', '.join(STAGES)}")
    cells, seeds = STAGES[settings.stage]
    names = tuple(CANDIDATES) if settings.stage == "screening" else ROWS
    for key, value, known in (("cell", settings.cell, cells), ("candidate", settings.candidate, names)):
        if value and value not in known:
            raise ConfigError(f"{key}={value} is not one of {', '.join(known)}")
    for seed in seeds if settings.seed is None else [settings.seed]:
        for cell in [settings.cell] if settings.cell else cells:
            for name in [settings.candidate] if settings.candidate else names:
                yield PlannedRow(settings.stage, cell, name, seed)


def command(launcher: str, *settings: str) -> list[str]:
    return [sys.executable, str(ROOT / "launchers" / f"{launcher}.py"), *settings]


def run_command(words: list[str]) -> None:
    """Run it on one thread, as the tabletop study was. Raises `RunError` when it fails."""
    print(shlex.join(words), flush=True)
    if code := subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
        raise RunError(f"exit status {code}; the same command of this script goes on: {shlex.join(words)}")


def prepare(cell: str, folder: Path) -> None:
    """Clips and towers of a cell, made by the commands of the tabletop study when they are missing."""
    tail, noise, shift, tower = cell.split()
    if not (folder / "shards" / shift / "manifest.json").is_file():
        world = f"dataset.world.domain_shift={shift}"
        run_command(command("build_shards", "experiment=demo", f"dataset.shards={folder / 'shards' / shift}", world))
    towers = folder / "towers" / f"{tail}_{noise}_{tower}"
    if (tail, noise, tower) != ("long", "0.4", "clip") and not (towers / "text.safetensors").is_file():
        taught = f"pretrain.supervised_weights={folder / 'towers' / 'supervised.safetensors'}"
        corpus = [f"dataset.world.corpus.verb_noise={noise}", *([FLAT] if tail == "flat" else [])]
        extra = MINILM if tower == "minilm" else ()
        run_command(command("pretrain_tabletop", f"output={towers}", taught, *corpus, *extra))


def finished_row(row: PlannedRow, folder: Path) -> CellRow:
    """The line of a finished run: its test, where there was one, and its last validation."""
    run = row.run(folder)
    validated = [line for line in read_metrics(run) if SIGNALS[0] in line]
    scores: dict[str, float | None] = {name: validated[-1].get(name) for name in SIGNALS} if validated else {}
    if row.stage != "screening":
        results = read_results(run)
        for name, (part, metric) in SCORES.items():
            found = found_part(results, part)
            scores[name] = None if found is None else found[metric]
    else:
        read_object(run / "results.json", RunError)  # which a run writes last
    return CellRow(row.cell, row.stage, row.name, row.seed, scores)


def report(rows: list[CellRow]) -> None:
    """Screening: differences to ACE by cell and in all. Full test: how well each rule ranks the runs."""
    screening = [row for row in rows if row.experiment == "screening"]
    by_name: dict[str, list[CellRow]] = {}
    for row in screening:
        by_name.setdefault(row.method, []).append(row)
    body = []
    for name, found in by_name.items():
        cells = []
        for cell in SCREENING_CELLS:
            own, ace = ([as_study(row) for row in part if row.cell == cell] for part in (found, by_name.get("ace", [])))
            cells.append(paired_difference(own, ace, SIGNALS[2]) or "-")
        body.append([name, len(found), *(mean_over(row.scores[key] for row in found) for key in SIGNALS[::2]), *cells])
    print("\n".join(markdown_table(["candidate", "n", "base", "base SRT", *SCREENING_CELLS], body)))
    try:
        for rule, correlation in rank_correlations([row for row in rows if row.experiment == "signal"]).items():
            print(f"{rule}: {correlation}")
    except RunError as error:
        print(error)


def as_study(row: CellRow) -> StudyRow:
    return StudyRow(row.experiment, row.method, row.seed, row.scores)


def main() -> None:
    settings = parse_settings(sys.argv[1:], Settings)
    folder, began, rows = Path(settings.folder).absolute(), time.monotonic(), read_cell_rows(RESULTS)
    if settings.report:
        return report(rows)
    for row in planned(settings):
        if (row.cell, row.stage, row.name, row.seed) in {known.key for known in rows}:
            continue
        if settings.dry_run:
            print(shlex.join(command("train", *row.settings(folder))))
            continue
        if settings.limit_s and time.monotonic() - began > settings.limit_s:
            print("limit_s is over; the same command goes on")
            return
        prepare(row.cell, folder)
        if not (row.run(folder) / "results.json").is_file():
            run_command(command("train", *row.settings(folder)))
        rows = [*read_cell_rows(RESULTS), finished_row(row, folder)]
        write_cell_rows(rows, RESULTS)


if __name__ == "__main__":
    main()
