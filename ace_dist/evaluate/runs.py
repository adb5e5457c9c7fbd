"""The evaluation of a finished run folder: the saved weights in, `results.json` and its companions out."""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ace_dist.concepts import LabelSet
from ace_dist.config import Config, read_config
from ace_dist.config.checks import check_config
from ace_dist.data.loader import build_test_loader
from ace_dist.data.run_inputs import read_inputs, replaced, run_config
from ace_dist.data.task import NO_TEST, Task, load_run_task, load_task, test_digest
from ace_dist.evaluate.caveats import METHOD, few_steps
from ace_dist.evaluate.licences import licence_note
from ace_dist.evaluate.metrics import accuracy_interval, random_baseline
from ace_dist.evaluate.palette import method_name
from ace_dist.evaluate.protocols import Clips, build_guesser, encode_phrases, encode_test, evaluate, score
from ace_dist.evaluate.run_files import BEFORE, read_metrics
from ace_dist.evaluate.verdict import verdict
from ace_dist.models.attention import attention_refused
from ace_dist.models.build import build_model
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.fused_blocks import fp8_refused
from ace_dist.models.interpolation import keeps_start, load_interpolated
from ace_dist.models.weights import START, TRAINED, TensorFile, load_tensors
from ace_dist.utils.console import say_once
from ace_dist.utils.determinism import deterministic
from ace_dist.utils.distributed import Ranks, uses_bf16
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_bytes, write_json, write_text
from ace_dist.utils.reading import read_object

SPARKS, SPARKS_WIDE = "▁▂▃▄▅▆▇█", 40
GZSL_NAMES = {"base": "base", "novel": "novel", "hm": "HM"}
CHEAP_TEST = 0.2  # of the clips that training read: with no backward pass, at most a fifteenth of training's arithmetic


def trained_model(run: Path, config: Config, device: torch.device) -> DualEncoder:
    """The model of a finished run, LoRA merged, in the precision it trained in; `evaluation.interpolate` of the way.

    Frozen blocks that had 8-bit products have the others' where a device has none, and a kernel of attention that does
    not run there is the one of `auto`; a line says so.
    """
    bf16, video = uses_bf16(config.training.precision, device), config.model.video
    sizes = video.width, int(video.width * video.mlp_ratio)
    dtype = torch.bfloat16 if bf16 else torch.float32
    if video.trunk_precision == "fp8" and (reason := fp8_refused(device, dtype, *sizes)):
        say_once(
            f"model.video.trunk_precision=fp8 trained this run; here frozen blocks compute as the others: {reason}"
        )
        config = replaced(config, {"model.video.trunk_precision": "same"})
    if reason := attention_refused(video.attention, device):
        say_once(f"model.video.attention={video.attention} trained this run; here it is chosen anew: {reason}")
        config = replaced(config, {"model.video.attention": "auto"})
    model = build_model(config.model, config.seed, run / "model")
    if (share := config.evaluation.interpolate) != 1:
        load_interpolated(model, run / "model", share)
    model.merge_lora()
    model = model.to(device)
    return model.bfloat16() if bf16 else model


def interpolated(config: Config, share: float | None) -> Config:
    """The configuration of a run with another `evaluation.interpolate`; None: the run's own. Raises `ConfigError`."""
    if share is not None:
        config = replaced(config, {"evaluation.interpolate": share})
        check_config(config)
    return config


def evaluate_run(
    run: Path,
    ranks: Ranks,
    shards: str | None = None,
    output: Path | None = None,
    note: Callable[[str], None] = lambda place: None,
    interpolate: float | None = None,
) -> dict[str, Any]:
    """Evaluate a finished run and write its results, into its folder or `output`. Collective; returns `results.json`.

    The clips are those of `shards`, or where the run read them; `note` is told where the evaluation is. Unless results
    go to `output`, `evaluate_before` follows. Raises an error for a folder that would get the results of other test
    clips than its run began with.
    """
    config = interpolated(run_config(run, shards), interpolate)
    if output is None and config.evaluation.interpolate != (own := read_config(run).evaluation.interpolate):
        raise RunError(
            f"evaluation.interpolate={interpolate:g} gives other weights than those whose results {run} holds "
            f"({own:g}); give output=DIR for the results of these"
        )
    task, folder = load_run_task(run, config), output or run
    if output is None and (known := read_inputs(run)["test"]) and known != (here := test_digest(task)):
        raise RunError(
            f"dataset.shards={config.dataset.shards} holds other test clips ({here['clips']}) than run {run} began "
            f"with ({known['clips']}); give the folder of those, or output=DIR for the results of these"
        )
    model = trained_model(run, config, ranks.device)
    with deterministic(config.training.deterministic):
        if config.evaluation.scorer == "chance":
            results, predictions = evaluate(config, task, build_guesser(config.seed))
        else:
            loader = build_test_loader(config, ranks.device, model.frozen_part(config.loader))

            def predict(clips: Clips, label_sets: Sequence[LabelSet]) -> list[dict[str, Any]]:
                return score(
                    model,
                    encode_test(model, loader, clips, config, ranks, partial(note, "evaluation")),
                    label_sets,
                    config,
                )

            results, predictions = evaluate(config, task, predict)
            loader.close()
    if config.evaluation.scorer != "chance":
        results["notes"] += filter(None, (licence_note(run), too_few_steps(run, config)))
    results["weights"] = weights_in_words(run)
    if interpolate is not None or config.evaluation.interpolate != 1:
        results["weights"] += f"; tested with evaluation.interpolate={config.evaluation.interpolate:g}"
    if output is None and (known := run / "results.json").is_file():  # a search for rates goes by its validation
        results |= {name: scores for name, scores in read_object(known, RunError).items() if name == "validation"}
    if ranks.is_first:
        before = untrained_text(run, config).to(ranks.device)
        folder.mkdir(parents=True, exist_ok=True)
        write_concept_space(folder / "concept_space.npz", task, before, model)
        write_text(folder / "predictions.json", json.dumps(predictions) + "\n")
        write_json(folder / "results.json", results)
    ranks.barrier()
    if output is None:
        evaluate_before(run, ranks, config, task, shards, note)
    return results


def evaluate_before(
    run: Path, ranks: Ranks, config: Config, task: Task, shards: str | None, note: Callable[[str], None]
) -> None:
    """Test the weights that training began with into `before/` of the run: a row of its report. Collective.

    Only where the run kept them and this takes little beside training; where it takes more, says how to get the row.
    """
    tested = config.dataset.clip.views * sum(len(task.test_clips(novel)[0]) for novel in (False, True))
    lines = [line for line in read_metrics(run) if "epoch" in line]
    trained = lines[-1]["step"] * config.training.batch_size if lines else 0
    trained = ranks.gather(trained if keeps_start(run / "model") else 0)[0]
    if not (trained and tested) or config.evaluation.scorer == "chance" or config.evaluation.interpolate == 0:
        return
    if tested <= CHEAP_TEST * trained:
        evaluate_run(run, ranks, shards, run / BEFORE, note, interpolate=0)
    elif ranks.is_first:
        print(
            f"the weights from before training are not tested: {tested} views of test clips are many beside the "
            f"{trained} clips that training read. For their row in the report: ace evaluate run={run} "
            f"evaluation.interpolate=0 output={run / BEFORE}, then ace report run={run}",
            flush=True,
        )


def weights_in_words(run: Path) -> str:
    """Which weights `trained.safetensors` holds; earlier versions also wrote the share there that is tested."""
    return TensorFile(run / "model" / TRAINED).metadata.get("weights", "trained").partition(", at ")[0]


def too_few_steps(run: Path, config: Config) -> str | None:
    """`few_steps` of a run that has trained, by the last line of its log."""
    lines = [line for line in read_metrics(run) if "epoch" in line]
    return few_steps(config.training, lines[-1]["step"], lines[-1]["epoch"] / lines[-1]["step"]) if lines else None


def untrained_text(run: Path, config: Config) -> DualEncoder:
    """The model of a run whose text tower is as it was before training. Runs of earlier versions need its old files."""
    inputs = read_inputs(run)
    if inputs["base"] is None:
        return build_model(config.model, config.seed)
    model = build_model(config.model, config.seed, run / "model")
    if inputs["start_sha256"]:
        load_tensors(model, TensorFile(run / "model" / START))
    return model


def keep_validation(run: Path, ranks: Ranks) -> dict[str, Any]:
    """Instead of a test: `results.json` with the validation of its weights alone, its scores in percent and its clips.

    Of the clips only their number counts in its interval: which of them were right is not kept.
    """
    config = run_config(run)
    lines = [line for line in read_metrics(run) if "validation_accuracy" in line]
    if not lines:
        raise RunError(
            f"{run / 'metrics.jsonl'} holds no validation, so there is no result; evaluation.test=true tests"
        )
    step = re.match(r"step (\d+)", weights_in_words(run))  # of the best with training.keep_best, else the last
    last = next((line for line in lines if step and line["step"] == int(step[1])), lines[-1])
    task = load_task(config)
    records, labels = task.validation_clips()
    names = [key.removeprefix("validation_") for key in last if key.startswith("validation_")]
    scores = {name: last[f"validation_{name}"] for name in names} | {"clips": len(records)}
    named = {"method": config.method.name, "dataset": config.dataset.name, "fold": config.dataset.fold}
    untested = dict.fromkeys(("base", "novel", "hm", "srt"))
    hits = np.full(len(records), scores["accuracy"] / 100)
    interval = {"accuracy": list(accuracy_interval(hits, [""] * len(records))), "clips": len(records)}
    results = {
        **named,
        "seed": config.seed,
        **untested,
        "validation": scores,
        "chance": {"validation": random_baseline(labels, len(task.classes.base))},
        "interval": {"method": METHOD, "validation": interval},
        "notes": [],
    }
    if ranks.is_first:
        write_json(run / "results.json", results)
    ranks.barrier()
    return results


def write_concept_space(path: Path, task: Task, before: DualEncoder, after: DualEncoder) -> None:
    """Unit text embeddings of every phrase that the test's tree file knows of an action, before and after fine-tuning.

    Where M cuts the trees these are more words than the training read, as in the paper's Fig. 5. Beside them stand the
    phrase, its action's root label and whether that is a base action.
    """
    phrases, actions, base = list[str](), list[str](), list[bool]()
    for action in (*task.classes.base, *task.classes.novel):
        verbs = task.trees.vocabulary(action.verb)
        phrases += [str(action.with_verb(verb)) for verb in verbs]
        actions += [str(action)] * len(verbs)
        base += [action in task.classes.base] * len(verbs)
    rows = [torch.nn.functional.normalize(encode_phrases(model, phrases), dim=1).numpy() for model in (before, after)]
    content = io.BytesIO()
    np.savez_compressed(content, before=rows[0], after=rows[1], phrases=phrases, actions=actions, base=base)
    write_bytes(path, content.getvalue())


def results_table(results: dict[str, Any]) -> str:
    """The paper's row for one run: accuracy / macro F1 in percent, of the SRT as mean ± std.

    Under it the accuracies' intervals, the row of guessing, a line for each thing that speaks against the scores, and
    the verdict.
    """
    header = ["method", "dataset", "base", "novel", "HM", "SRT (mean ± std)"]
    cells = [score_pair(results[part]) for part in ("base", "novel", "hm")]
    name = method_name(results["method"])
    rows = [header, [name, results["dataset"], *cells, srt_pair(results["srt"])]]
    untested = results["base"] is None and results["novel"] is None
    units = [f"nothing was scored: {NO_TEST}" if untested else "accuracy / macro F1, in percent"]
    if within := results.get("interval"):  # runs of before have none of the three
        rows.append(["interval", "", *(interval_text(within.get(part)) for part in ("base", "novel", "hm", "srt"))])
        units.append(f"interval of the accuracy: {within['method']}")
    if chance := results.get("chance"):
        scores = [score_pair(chance.get(part)) for part in ("base", "novel", "hm")]
        rows.append(["chance", "", *scores, score_pair(chance.get("srt"), "_mean")])
        units[0] += "; chance: guessing each label alike"
    title, *lines = aligned_lines(rows)
    notes = [f"note: {note}" for note in results.get("notes", [])]
    found = [] if untested else [verdict(name, results)]
    return "\n".join([title, "-" * len(title), *lines, *beside_the_paper(results), *units, *notes, *found])


def loss_sparkline(lines: Sequence[Mapping[str, Any]]) -> str:
    """The loss of a run in one line of text, on a logarithmic scale: `loss 12.9 █▆▄▂▁ 0.52`; empty without steps."""
    losses = np.array([line["loss"] for line in lines if line.get("loss", 0) > 0])
    if len(losses) < 2:
        return ""
    means = [float(part.mean()) for part in np.array_split(np.log(losses), min(SPARKS_WIDE, len(losses)))]
    low, high = min(means), max(means)
    heights = [round((mean - low) / max(high - low, 1e-9) * (len(SPARKS) - 1)) for mean in means]
    return f"loss {losses[0]:.3g} {''.join(SPARKS[height] for height in heights)} {losses[-1]:.3g}"


def interval_text(part: Mapping[str, Any] | None) -> str:
    """The interval of an accuracy in a part of `results.json`, a dash where there is none."""
    return "{:.1f} to {:.1f}".format(*part["accuracy"]) if part else "-"


def beside_the_paper(results: dict[str, Any]) -> list[str]:
    """Lines on what the paper's tables do not have: the robustness test on base actions, and all classes together."""
    lines = [f"SRT of base actions: {srt_pair(results['srt_base'])}"] if results["srt_base"] else []
    if gzsl := results["gzsl"]:
        scores = ", ".join(f"{name} {score_pair(gzsl[part])}" for part, name in GZSL_NAMES.items())
        area = f", area under the bias curve {gzsl['curve']['area']:.1f}" if gzsl["curve"] else ""
        lines.append(f"among all classes: {scores}{area}")
    return lines


def srt_pair(srt: dict[str, float] | None) -> str:
    """Accuracy and macro F1 of a robustness test, mean ± deviation over its label sets."""
    if srt is None:
        return "-"
    return f"{srt['accuracy_mean']:.1f}±{srt['accuracy_std']:.1f} / {srt['f1_mean']:.1f}±{srt['f1_std']:.1f}"


def score_pair(part: dict[str, float] | None, kind: str = "") -> str:
    """Accuracy and macro F1 of one part of `results.json` (`kind="_mean"`: of the SRT), a dash where there is none."""
    return f"{part[f'accuracy{kind}']:.1f} / {part[f'f1{kind}']:.1f}" if part else "-"


def aligned_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
