"""Owns the evaluation of a finished run folder: the saved weights in, `results.json` and its companions out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from ace_dist.config import Config, read_config
from ace_dist.data.loader.feature_cache import open_loader
from ace_dist.data.task import NO_TEST, load_task, load_trees
from ace_dist.evaluate.chance import evaluate_chance
from ace_dist.evaluate.protocols import evaluate, write_concept_space
from ace_dist.models.build import build_model
from ace_dist.utils.determinism import deterministic
from ace_dist.utils.distributed import uses_bf16
from ace_dist.utils.files import write_json, write_text

if TYPE_CHECKING:
    import torch

    from ace_dist.models.dual_encoder import DualEncoder
    from ace_dist.utils.distributed import Ranks


def trained_model(run_dir: Path, config: Config, device: torch.device) -> DualEncoder:
    """The model of a finished run, in the precision it was trained in."""
    model = build_model(config.model, config.seed, run_dir / "model").to(device)
    return model.bfloat16() if uses_bf16(config.training.precision, device) else model


def evaluate_run(run_dir: Path, ranks: Ranks) -> dict[str, Any]:
    """Evaluate a finished run from its folder alone and write its results. Collective; returns `results.json`."""
    config = read_config(run_dir)
    task = load_task(config)
    if config.evaluation.synonyms is not None:
        dataset = replace(config.dataset, synonyms=config.evaluation.synonyms)
        task = replace(task, trees=load_trees(replace(config, dataset=dataset)))
    model = trained_model(run_dir, config, ranks.device)
    loader = open_loader(config, model, ranks.device)
    with deterministic(config.training.deterministic):
        if config.evaluation.scorer == "chance":
            results, predictions = evaluate_chance(config, task)
        else:
            results, predictions = evaluate(config, task, model, loader, ranks)
    loader.close()
    results |= tested_weights(run_dir)
    if ranks.is_first:
        before = build_model(config.model, config.seed).to(ranks.device)
        write_concept_space(run_dir / "concept_space.npz", task, before, model)
        write_text(run_dir / "predictions.json", json.dumps(predictions) + "\n")
        write_json(run_dir / "results.json", results)
    ranks.barrier()
    return results


def tested_weights(run_dir: Path) -> dict[str, str]:
    """Which weights `trained.safetensors` holds, in words, under `weights`; empty for a file that does not say."""
    with safe_open(run_dir / "model" / "trained.safetensors", "pt") as file:
        return {name: text for name, text in (file.metadata() or {}).items() if name == "weights"}


def results_table(results: dict[str, Any]) -> str:
    """The paper's row for one run: accuracy / macro F1 in percent, seen, unseen, HM and SRT mean ± std."""

    def cell(part: dict[str, float] | None) -> str:
        """Accuracy and macro F1 of one part, or a dash where there is none."""
        return "-" if part is None else f"{part['accuracy']:.1f} / {part['f1']:.1f}"

    srt = results["srt"]
    spread = (
        "-"
        if srt is None
        else f"{srt['accuracy_mean']:.1f}±{srt['accuracy_std']:.1f} / {srt['f1_mean']:.1f}±{srt['f1_std']:.1f}"
    )
    header = ["method", "dataset", "seen", "unseen", "HM", "SRT (mean ± std)"]
    row = [results["method"], results["dataset"], *(cell(results[k]) for k in ("base", "novel", "hm")), spread]
    widths = [max(len(a), len(b)) for a, b in zip(header, row, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in (header, row)]
    unit = "accuracy / macro F1, in percent"
    if results["base"] is None and results["novel"] is None:
        unit = f"nothing was scored: {NO_TEST}"
    return "\n".join([lines[0], "-" * len(lines[0]), lines[1], unit])
