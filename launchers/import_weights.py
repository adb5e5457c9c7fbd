"""Bring others' weights in: `python launchers/import_weights.py source=FILE output=FILE.safetensors [tower=NAME]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ace_dist.config import ConfigError, run_launcher, simple_settings


def main(argv: Sequence[str]) -> None:
    """Read, convert, report, and write when nothing is missing, left over or of another shape."""
    settings = simple_settings(
        argv,
        {"source": "a weight file or Hugging Face folder", "output": "a .safetensors file"},
        {
            "kind": "what the source is (found from its keys when left out)",
            "tower": "timesformer, vit, spacetime or text",
            "frames": "frames of the time embedding",
            "image_size": "pixels",
            "embed_dim": "width of the shared space",
            "allow": "a list of keys that may differ, such as '[head.*]'",
            "allow_pickle": "true for old files whose origin you trust",
        },
    )
    if Path(settings["output"]).suffix != ".safetensors":
        raise ConfigError(f"output={settings['output']} must end in .safetensors")
    from ace_dist.models.importing import Wanted, import_weights, save_imported
    from ace_dist.models.weight_layouts import KINDS
    from ace_dist.models.weights import WeightsError

    wanted = Wanted(
        settings["tower"], settings["frames"], settings["image_size"], settings["embed_dim"],
        tuple(settings["allow"] or ()),
    )  # fmt: skip
    state, report = import_weights(Path(settings["source"]), wanted, settings["kind"], bool(settings["allow_pickle"]))
    print(report.table())
    if not report.complete:
        raise WeightsError(
            f"{settings['source']} does not fit: see missing, unexpected and mismatched above; nothing was written. If "
            f"that is intended, list the keys, for example allow='[head.*]'"
        )
    save_imported(state, report, Path(settings["output"]))
    section = "text" if report.tower == "text" else "video"
    tower = "" if section == "text" else f"model.video.tower={report.tower} "
    print(f"licence of the source: {KINDS[report.kind].licence}")
    print(f"use it with: {tower}{report.sizes.command_line(section)} model.{section}.weights={settings['output']}")


if __name__ == "__main__":
    run_launcher(main)
