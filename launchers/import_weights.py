"""Bring others' weights in: `python launchers/import_weights.py source=FILE output=FILE.safetensors [tower=NAME]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ace_dist.config import run_launcher, typed_settings
from ace_dist.models.convert.importing import ImportConfig, import_weights, save_imported
from ace_dist.models.convert.layouts import KINDS
from ace_dist.utils.errors import ConfigError, ModelError


def main(argv: Sequence[str]) -> None:
    """Read, convert, report, and write when nothing is missing, left over or of another shape."""
    config = typed_settings(argv, ImportConfig)
    if not (config.source and config.output.endswith(".safetensors")):
        raise ConfigError("give source=FILE (a weight file or Hugging Face folder) and output=FILE.safetensors")
    state, report = import_weights(config)
    print(report.table())
    if not report.complete:
        raise ModelError(
            f"{config.source} does not fit: see missing, unexpected and mismatched above; nothing was written. If that "
            f"is intended, list the keys, for example allow='[head.*]'"
        )
    save_imported(state, report, Path(config.output))
    section = "text" if report.tower == "text" else "video"
    print(f"licence of the released files of this kind: {KINDS[report.kind].licence}; keep to that of yours")
    print(f"heads are in no tensor: model.{section}.heads is width / 64 in CLIP, ViT-B and TimeSformer")
    print(f"use it with: {report.command_line(config.output)}")


if __name__ == "__main__":
    run_launcher(main)
