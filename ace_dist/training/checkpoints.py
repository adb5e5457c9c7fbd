"""Owns checkpoints: written whole or not at all, found again, and checked against the run that continues them.

A run's `checkpoints/` holds `step-00000200/` folders with DeepSpeed's files (weights that train, optimizer) and
`checkpoint.json` (step, ranks, ZeRO stage, size and SHA-256 of each file). A folder is written under `*.partial` and
renamed, so a folder with the final name is complete. Everything else a run needs (data order, crops, drawn labels,
learning rates) is a function of the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_dist.errors import UserError
from ace_dist.files import write_json

if TYPE_CHECKING:
    from ace_dist.config import TrainingConfig
    from ace_dist.distributed import Ranks
    from ace_dist.training.engine import Engine

__all__ = ["CheckpointError", "Checkpoints"]


class CheckpointError(UserError):
    """A checkpoint that this run cannot continue."""


class Checkpoints:
    """Saves and restores an engine under `run_dir/checkpoints`. All methods are collective: every rank calls them."""

    def __init__(self, run_dir: Path, engine: Engine, ranks: Ranks, settings: TrainingConfig) -> None:
        self.folder = run_dir / "checkpoints"
        self.engine = engine
        self.ranks = ranks
        self.settings = settings
        self.saved: int | None = None

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps."""
        return step % self.settings.save_every_steps == 0

    def save(self, step: int) -> None:
        """Save the state after `step` steps; does nothing when that is saved already."""
        if self.saved == step:
            return
        name = f"step-{step:08d}"
        partial = self.folder / f"{name}.partial"
        if self.ranks.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
        self.ranks.barrier()
        self.engine.deepspeed.save_checkpoint(
            str(self.folder), tag=partial.name, save_latest=False, exclude_frozen_parameters=True
        )
        self.ranks.barrier()
        if self.ranks.is_first:
            write_json(partial / "checkpoint.json", self.describe(step, partial))
            shutil.rmtree(self.folder / name, ignore_errors=True)
            os.rename(partial, self.folder / name)
            for old in self.complete()[: -self.settings.keep_checkpoints]:
                shutil.rmtree(old)
        self.ranks.barrier()
        self.saved = step

    def restore(self) -> int:
        """Load the newest whole checkpoint; returns the number of steps done, 0 when there is none.

        A damaged one is named and the one before it used. Raises `CheckpointError` when it was made by another number
        of ranks or another ZeRO stage.
        """
        found = self.ranks.gather(self.newest() if self.ranks.is_first else None)[0]
        if found is None:
            return 0
        path, about = found
        stage = int(self.engine.deepspeed.zero_optimization_stage())
        for key, ours, remedy in (
            ("world_size", self.ranks.world, f"{about['world_size']} ranks"),
            ("zero_stage", stage, f"deepspeed.zero_optimization.stage={about['zero_stage']}"),
        ):
            if about[key] != ours:
                raise CheckpointError(
                    f"{path} was written with {key} {about[key]}, this run has {ours}: continue with {remedy}, or "
                    f"choose another run_dir"
                )
        self.engine.deepspeed.load_checkpoint(str(self.folder), tag=path.name, load_module_strict=False)
        self.saved = int(about["step"])
        if self.ranks.is_first:
            print(f"continuing after step {self.saved} from {path}", flush=True)
        return self.saved

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint whose files are as they were written, with its description."""
        for path in reversed(self.complete()):
            about = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
            damaged = [name for name, facts in about["files"].items() if file_facts(path / name) != facts]
            if not damaged:
                return path, about
            print(f"checkpoint {path} is damaged ({', '.join(damaged)} changed); trying the one before", flush=True)
        return None

    def complete(self) -> list[Path]:
        """Complete checkpoint folders, oldest first."""
        return sorted(
            path for path in self.folder.glob("step-*") if (path / "checkpoint.json").is_file() and not path.suffix
        )

    def describe(self, step: int, folder: Path) -> dict[str, Any]:
        """What `checkpoint.json` says."""
        return {
            "step": step,
            "world_size": self.ranks.world,
            "zero_stage": int(self.engine.deepspeed.zero_optimization_stage()),
            "files": {path.name: file_facts(path) for path in sorted(folder.iterdir()) if path.is_file()},
        }


def file_facts(path: Path) -> dict[str, Any] | None:
    """Size in bytes and SHA-256 of a file, `None` when it is missing."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
