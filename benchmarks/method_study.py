"""Does a recipe chosen on seen actions alone win under other words? The runs of `results/method/README.md`.

    python benchmarks/method_study.py stage=screening                                  # every missing row, in order
    python benchmarks/method_study.py stage=screening cell='long 0.4 1 clip' candidate=distil_1 seed=100
    python benchmarks/method_study.py stage=combine                                    # what the screening kept
    python benchmarks/method_study.py report=true                                      # tables of what is there

A row is one command and one line of `results/method/runs.csv`. What is there is not run again; a run that was stopped
goes on. Several processes may share the work: each takes a row that no other has. Clips and towers of a cell are made
when they are missing. After `limit_s` no run begins. A failed run is named at the end, and the others go on.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.config import load_config
from ace_dist.config.settings import parse_settings
from ace_dist.evaluate import figures
from ace_dist.evaluate.run_files import read_metrics, read_results
from ace_dist.tools.study.comparisons import FullTest, forest, full_test_lines
from ace_dist.tools.study.rows import SCORES, found_part
from ace_dist.tools.study.screening import (
    MOST_KEPT,
    Design,
    combination_lines,
    combine,
    screen,
    screening_lines,
)
from ace_dist.tools.study.selection import SIGNALS, CellRow, add_cell_row, rank_correlations, read_cell_rows
from ace_dist.utils.errors import ConfigError, RunError, UserError
from ace_dist.utils.locks import lock
from ace_dist.utils.reading import read_object

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "method" / "runs.csv"
MINILM = ("model.text.tower=minilm", "model.text.width=384", "model.text.depth=6", "model.text.heads=12")
VIDEO_FILES = {  # of the baselines with another video network
    "vifi_ft": "vit", "vifi_pr": "vit", "text4vis": "vit", "bike": "vit", "lavila": "spacetime",
}  # fmt: skip
FLAT = "dataset.world.corpus.synonym_tail=[1,1,1,1,1,1,1,1]"
SCREENING_CELLS = ("long 0.4 1 clip", "long 0.4 0 clip", "flat 0 1 clip")
FRESH_CELLS = ("flat 0.2 0.75 clip", "long 0.2 0.75 minilm")  # no choice has seen them
FULL_CELLS = (
    "long 0.4 1 clip", "long 0.4 0.5 clip", "long 0.4 0 clip", "flat 0.4 1 clip", "long 0 1 clip", "flat 0 1 clip",
    "long 0.4 1 minilm", "long 0.4 0 minilm", "flat 0.4 1 minilm", "long 0 1 minilm", "flat 0 1 minilm",
)  # fmt: skip
SCREENING_SEEDS, TEST_SEEDS = range(100, 103), range(10)
SIGNAL_SEEDS = TEST_SEEDS[:5]  # of which the full test is made again with the signal on, to compare selection rules
STAGES = {
    "screening": (SCREENING_CELLS, SCREENING_SEEDS), "combine": (SCREENING_CELLS, SCREENING_SEEDS),
    "full": ((*FULL_CELLS, *FRESH_CELLS), TEST_SEEDS), "signal": ((*FULL_CELLS, *FRESH_CELLS), SIGNAL_SEEDS),
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
CANDIDATES: dict[str, dict[str, tuple[str, ...]]] = {  # the protocol's; of each the values by name in `runs.csv`
    "weight interpolation": {
        "interpolate_0.8": ("evaluation.interpolate=0.8",),
        "interpolate_0.6": ("evaluation.interpolate=0.6",),
    },
    "EMA": {"ema_0.99": ("training.ema_decay=0.99",), "ema_0.999": ("training.ema_decay=0.999",)},
    "SWA": {"swa_0.75": ("training.swa_start=0.75",)},
    "pull to the start": {"l2_sp_0.01": ("method.l2_sp=0.01",), "l2_sp_0.1": ("method.l2_sp=0.1",)},
    "distilled phrase similarities": {"distil_1": ("method.distil=1",), "distil_10": ("method.distil=10",)},
    "rates per layer": {
        "layer_decay_0.75": ("training.layer_decay=0.75", "model.video.trained_blocks=6"),
        "layer_decay_0.5": ("training.layer_decay=0.5", "model.video.trained_blocks=6"),
    },
    "full depth": {"full_depth": WHOLE},
    "LoRA": {"lora_4": (*WHOLE, "model.video.lora_rank=4", "model.text.lora_rank=4")},
    "shadow negatives without the nearest": {"shadow_0_0.9": ("method.shadow_band=[0,0.9]",)},
    "semi-hard shadow negatives": {"shadow_0.5_0.9": ("method.shadow_band=[0.5,0.9]",)},
    "concept margin": {"margin_0.1": ("method.margin=0.1",), "margin_0.3": ("method.margin=0.3",)},
}
VALUES = {name: settings for options in CANDIDATES.values() for name, settings in options.items()}
DESIGN = Design("ace", CANDIDATES, SCREENING_CELLS, SCREENING_SEEDS)
ROWS = ("ace", "procvlr", "vifi_ft", "vifi_pr", "text4vis", "bike", "lavila")  # of Table 1, for the full test
NAME = "ace_plus"
# Values, in the order in which the rule added them: what `stage=combine` found, and `report=true` ends with.
RECIPE: tuple[str, ...] = ("l2_sp_0.01", "shadow_0_0.9", "ema_0.99")


@dataclass
class Settings:
    stage: str = ""  # screening | combine | full | signal; empty: screening, and of the report all
    cell: str = ""  # one cell; empty: all of the stage
    candidate: str = ""  # one value of a candidate, or in the full test one method; empty: all
    seed: int | None = None  # one seed; null: all of the stage
    folder: str = "runs/method"  # of clips, towers and runs
    limit_s: float = 0.0  # begin no run after so many seconds; 0: no limit
    dry_run: bool = False  # print the commands that are missing, and stop
    report: bool = False  # print the tables of what is there, and stop


@dataclass(frozen=True)
class PlannedRow:
    """A run of the study; `name`: of `VALUES`, several of them joined by `+`, of `ROWS`, or of the recipe's rows."""

    stage: str
    cell: str
    name: str
    seed: int

    def settings(self, folder: Path) -> list[str]:
        """Of `launchers/train.py`."""
        tail, noise, shift, tower = self.cell.split()
        parts = () if self.name in ROWS else recipe_rows().get(self.name) or self.name.split("+")
        method = ["method=ace" if parts else f"method={self.name}", *settings_of(parts)]
        chosen = [*SIGNAL, f"evaluation.test={str(self.stage == 'signal').lower()}"] if self.stage != "full" else []
        towers = folder / "towers" / f"{tail}_{noise}_{tower}"
        shipped = (tail, noise, tower) == ("long", "0.4", "clip")
        video = towers / VIDEO_FILES.get(self.name, "video")
        weights = [f"model.video.weights={video}.safetensors", f"model.text.weights={towers / 'text'}.safetensors"]
        # MiniLM has no learned prompts, so there ViFi-CLIP prompts the video alone; baselines keep their own rates.
        beside = "model.text.prompt_tokens=0" if self.name in VIDEO_FILES else "training.lr_text=0.002"
        text = [*MINILM, beside] if tower == "minilm" else []
        return [
            "experiment=demo", f"seed={self.seed}", "training.precision=bf16", "loader.threads=1",
            f"dataset.shards={folder / 'shards' / shift}", f"run={self.run(folder)}",
            *([] if shipped else weights), *text, *chosen, *method,
        ]  # fmt: skip

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Of its line in `runs.csv`."""
        return self.cell, self.stage, self.name, self.seed

    def run(self, folder: Path) -> Path:
        return folder / self.stage / self.cell.replace(" ", "_") / f"{self.name.replace(' ', '_')}_{self.seed}"


def recipe_rows() -> dict[str, tuple[str, ...]]:
    """The recipe and its ablations, each part off, with their parts. Off the only part of a recipe is ACE itself."""
    if not RECIPE:
        return {}
    ablations = {f"{NAME} without {one}": tuple(part for part in RECIPE if part != one) for one in RECIPE}
    return {NAME: RECIPE, **(ablations if len(RECIPE) > 1 else {})}


def full_test(cells: Sequence[str]) -> FullTest:
    ablations = [name for name in recipe_rows() if name != NAME]
    return FullTest(NAME, ROWS, "procvlr", ablations, cells, TEST_SEEDS)


def settings_of(parts: Sequence[str]) -> list[str]:
    return [setting for part in parts for setting in VALUES[part]]


def conflict(parts: Sequence[str]) -> str:
    """Why these values cannot be one recipe; empty when they can."""
    keys: dict[str, str] = {}
    for part in parts:
        for setting in VALUES[part]:
            key = setting.partition("=")[0]
            if keys.setdefault(key, setting) != setting:
                return f"it sets {setting}, beside {keys[key]}"
    try:
        load_config(["experiment=demo", "method=ace", *settings_of(parts)])
    except ConfigError as error:
        return str(error)
    return ""


def planned(settings: Settings) -> Iterator[PlannedRow]:
    """The rows asked for: seeds last, so that what is done first compares all candidates. Raises `ConfigError`."""
    stage = settings.stage or "screening"
    if stage not in STAGES:
        raise ConfigError(f"stage={stage} is not one of {', '.join(STAGES)}")
    cells, seeds = STAGES[stage]
    names = (*ROWS, *recipe_rows())
    if stage in ("screening", "combine"):
        names = ("ace", *VALUES) if stage == "screening" else wanted_combination()
    if settings.candidate.startswith(NAME) and not RECIPE:
        raise ConfigError(f"candidate={settings.candidate}: RECIPE of this script is not fixed yet")
    for key, value, known in (("cell", settings.cell, cells), ("candidate", settings.candidate, names)):
        if value and value not in known:
            raise ConfigError(f"{key}={value} is not one of {', '.join(known)}")
    for seed in seeds if settings.seed is None else [settings.seed]:
        for cell in [settings.cell] if settings.cell else cells:
            for name in [settings.candidate] if settings.candidate else names:
                yield PlannedRow("screening" if stage == "combine" else stage, cell, name, seed)


def wanted_combination() -> tuple[str, ...]:
    """The combination that the rule asks for next; none when the recipe is known. Raises `RunError` before that."""
    rows = read_cell_rows(RESULTS)
    screening = screen(rows, DESIGN)
    if screening.missing:
        raise RunError(f"{screening.missing} rows of the screening are missing; stage=screening runs them")
    wanted = combine(rows, DESIGN, screening, conflict).wanted
    return (wanted,) if wanted else ()


def command(launcher: str, *settings: str) -> list[str]:
    return [sys.executable, str(ROOT / "launchers" / f"{launcher}.py"), *settings]


def run_command(words: list[str]) -> None:
    """Run it on one thread, as the tabletop study was. Raises `RunError` when it fails."""
    print(shlex.join(words), flush=True)
    if code := subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
        raise RunError(f"exit status {code} of: {shlex.join(words)}")


def prepare(cell: str, folder: Path) -> None:
    """Clips and towers of a cell, made by the commands of the tabletop study when they are missing."""
    tail, noise, shift, tower = cell.split()
    if not (folder / "shards" / shift / "manifest.json").is_file():
        world = f"dataset.world.domain_shift={shift}"
        run_command(command("build_shards", "experiment=demo", f"dataset.shards={folder / 'shards' / shift}", world))
    towers = folder / "towers" / f"{tail}_{noise}_{tower}"
    if (tail, noise, tower) == ("long", "0.4", "clip"):
        return
    if not (towers / "text.safetensors").is_file():
        taught = f"pretrain.supervised_weights={folder / 'towers' / 'supervised.safetensors'}"
        corpus = [f"dataset.world.corpus.verb_noise={noise}", *([FLAT] if tail == "flat" else [])]
        extra = MINILM if tower == "minilm" else ()
        run_command(command("pretrain_tabletop", f"output={towers}", "pretrain.threads=1", taught, *corpus, *extra))
    for tower in sorted(set(VIDEO_FILES.values())):  # the same weights in the networks of the baselines
        output = towers / f"{tower}.safetensors"
        if not output.is_file():
            source = f"source={towers / 'video.safetensors'}"
            run_command(command("import_weights", source, f"tower={tower}", "embed_dim=64", f"output={output}"))


def finished_row(row: PlannedRow, folder: Path) -> CellRow:
    """The line of a finished run: its test, where there was one, and its last validation."""
    run = row.run(folder)
    scores: dict[str, float | None] = {}
    if row.stage != "full":
        validated = [line for line in read_metrics(run) if SIGNALS[2] in line]
        if not validated:
            raise RunError(f"{run}/metrics.jsonl has no {SIGNALS[2]}; remove the folder, and the same command runs it")
        scores |= {name: validated[-1].get(name) for name in SIGNALS}
    if row.stage != "screening":
        results = read_results(run)
        for name, (part, metric) in SCORES.items():
            found = found_part(results, part)
            scores[name] = None if found is None else found[metric]
    else:
        read_object(run / "results.json", RunError)  # which a run writes last
    return CellRow(row.cell, row.stage, row.name, row.seed, scores)


def finish(row: PlannedRow, folder: Path) -> str:
    """Run a row and write its line, unless it is there or another process runs it; what failed, in words.

    A run that fails is left as it is, for the same command to go on. Raises `RunError` when its cell cannot be made.
    """
    run = row.run(folder)
    with lock(run.with_name(f"{run.name}.lock"), wait=False) as held:
        if not held:
            print(f"{run}: another process runs it")
            return ""
        if row.key in {known.key for known in read_cell_rows(RESULTS)}:
            return ""
        with lock(folder / "prepare.lock"):
            prepare(row.cell, folder)
        try:
            if not (run / "results.json").is_file():
                run_command(command("train", *row.settings(folder)))
            add_cell_row(finished_row(row, folder), RESULTS)
        except RunError as error:
            print(error, file=sys.stderr)
            return str(error)
    return ""


def report(stage: str) -> Iterator[str]:
    """Markdown of what is there: screening and combination, the full test, how well each rule ranks its runs."""
    rows = read_cell_rows(RESULTS)
    if stage in ("", "screening", "combine"):
        screening = screen(rows, DESIGN)
        yield from ["## Screening", "", *screening_lines(screening, DESIGN), ""]
        if not screening.missing:
            combination = combine(rows, DESIGN, screening, conflict)
            yield from ["## Combination", "", *combination_lines(combination), ""]
            if RECIPE and combination.recipe != RECIPE:
                yield from [f"**RECIPE of this script is another one: {' + '.join(RECIPE)}.**", ""]
    if stage in ("", "full"):
        test, fresh = full_test(FULL_CELLS), full_test(FRESH_CELLS)
        yield from [*full_test_lines(rows, test, fresh), ""]
        if figure := forest(rows, test):
            path = figures.save(figure, RESULTS.with_name("full_gain.png"))
            yield from [f"![{path.stem}]({path.name})", ""]
    if stage in ("", "signal"):
        yield from ["## Which rule predicts the test", ""]
        try:
            correlations = rank_correlations([row for row in rows if row.experiment == "signal"])
            yield from (f"- {rule}: {correlation}" for rule, correlation in correlations.items())
        except RunError as error:
            yield f"Missing: {error}."


def run(settings: Settings) -> list[str]:
    """Finish the rows asked for; returns what failed. A combination may ask for one more when it is known."""
    folder, began, failed = Path(settings.folder).absolute(), time.monotonic(), list[str]()
    for _ in range(MOST_KEPT - 1 if settings.stage == "combine" else 1):
        for row in planned(settings):
            if settings.limit_s and time.monotonic() - began > settings.limit_s:
                print("limit_s is over; the same command goes on")
                return failed
            failed += filter(None, [finish(row, folder)])
    return failed


def main() -> None:
    settings = parse_settings(sys.argv[1:], Settings)
    if settings.report:
        print("\n".join(report(settings.stage)))
    elif settings.dry_run:
        there = {known.key for known in read_cell_rows(RESULTS)}
        for row in planned(settings):
            if row.key not in there:
                print(shlex.join(command("train", *row.settings(Path(settings.folder).absolute()))))
    else:
        end(run(settings))


def end(failed: Sequence[str]) -> None:
    """Exit with what failed, where something did."""
    if failed:
        sys.exit("\n".join([f"{len(failed)} failed; the same command goes on with them:", *failed]))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
