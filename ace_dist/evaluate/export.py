"""The exported folder: encoders, configuration, trees, label sets, results, provenance and a model card.

video/, text/    the encoders, in transformers' layout where it has one
open_clip/       both of them, where they are open_clip's; viclip/ and internvideo2/ where they are those
config.yaml      without the paths of the machine that trained it and the groups (people) of its clips
synonyms.json    the trees
labels.json      base and novel actions, the label sets of the SRT
results.json     of the run
provenance.json  versions, commit, starting weights and their licences
README.md        the model card
SHA256SUMS       of every file but the model card; reading compares them, and reads no other file
attributes.txt   of BIKE
tokenizer.json   of a text tower with tokens of its own
"""

import textwrap
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ace_dist.concepts import SynonymTrees
from ace_dist.config import Config, assets_dir, read_config, resolve_path, to_yaml
from ace_dist.data.run_inputs import KEPT, PATHS, absolute, read_inputs, replaced, run_config, starting_weights
from ace_dist.data.task import load_test_trees
from ace_dist.evaluate.licences import binding_licence, start_licences
from ace_dist.evaluate.run_files import read_results, read_run_object
from ace_dist.evaluate.runs import interpolated, results_table, trained_model
from ace_dist.models.build import check_size
from ace_dist.models.convert.exporting import INTERNVIDEO2_FILE, PAIR, VICLIP_FILE, load_encoders, save_encoders
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.weights import LICENCE, NOT_RECORDED, read_licence
from ace_dist.utils.console import say_once
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import (
    CHECKSUMS,
    check_checksums,
    file_sha256,
    is_listed,
    private_folder,
    write_checksums,
    write_json,
    write_text,
)
from ace_dist.utils.reading import read_object, read_text
from ace_dist.utils.secrets import redact, redacted
from ace_dist.utils.text import markdown

NO_LORA = {"lora_rank": 0, "lora_alpha": None}  # which an export has merged
OF_MAKERS = ("base_url", "hand_edits")  # of trees: a server's address; who edited which sheet
OF_PEOPLE: dict[str, Any] = {
    "dataset.test_groups": None, "dataset.left_out_groups": [], "evaluation.validation_groups": [],
}  # fmt: skip
OF_VALIDATION: dict[str, Any] = {  # what is refused without groups that validate
    "evaluation.every_steps": 0, "evaluation.validation_words": 0.0, "evaluation.test": True,
    "training.keep_best": False, "training.early_stopping_patience": 0,
}  # fmt: skip
NEEDED = ("config.yaml", "synonyms.json", "video/model.safetensors", "text/model.safetensors")
OPTIONAL = (PAIR, VICLIP_FILE, INTERNVIDEO2_FILE, "attributes.txt", "tokenizer.json")  # read where an export has them


def export_run(run: Path, output: Path, interpolate: float | None = None) -> None:
    """Write a finished run as a folder that needs nothing else. Raises `RunError` when there is one already.

    `interpolate`: weights at another share of the way from before training to after than the run's own. A note beside
    the results says that they are not of these, and the calibration, which is not either, stays behind.
    """
    if run.resolve().is_relative_to(output.resolve()):
        raise RunError(f"output={output} is or holds the run that is exported; choose another folder")
    if output.exists():
        raise RunError(f"output={output} exists; choose another folder or delete it")
    own, results = run_config(run), read_results(run)
    config = interpolated(own, interpolate)
    same_weights = config.evaluation.interpolate == own.evaluation.interpolate
    if not same_weights:
        results["notes"].append(
            f"these results are of the run's own weights (evaluation.interpolate={own.evaluation.interpolate:g}), not "
            f"of those in this folder"
        )
    if config.evaluation.scorer == "chance":
        raise RunError(f"{run} was scored by chance (evaluation.scorer=chance): it has no model to export")
    load_test_trees(config)  # refuses what `from_pretrained` could not read
    unrounded = replaced(config, {"training.precision": "fp32"})  # the weights as the run stores them
    model = trained_model(run, unrounded, torch.device("cpu"))
    output.parent.mkdir(parents=True, exist_ok=True)
    with private_folder(f".{output.name}.", output.parent) as temporary:
        folder = temporary / output.name  # under its name only when whole
        folder.mkdir()
        loads = save_encoders(model, folder, config.dataset.clip.frames, config.method.temperature)
        trees = SynonymTrees.load(
            own_file(run, config, f"{'evaluation' if config.evaluation.synonyms else 'dataset'}.synonyms")
        )
        trees.meta = redacted({key: fact for key, fact in trees.meta.items() if key not in OF_MAKERS})
        trees.save(folder / "synonyms.json")
        if config.model.similarity.attributes is not None:
            words = read_text(own_file(run, config, "model.similarity.attributes"), RunError)
            write_text(folder / "attributes.txt", redact(words))
        if config.model.text.tokenizer is not None:
            write_text(folder / "tokenizer.json", read_text(own_file(run, config, "model.text.tokenizer"), RunError))
        if (
            same_weights and (path := run / "calibration.json").is_file()
        ):  # without the names of people that it was made on
            calibration, parts = read_object(path, RunError), ("version", "decoder", "rejection")
            write_json(folder / path.name, {name: calibration.get(name) for name in parts})
        predictions, provenance = read_run_object(run, "predictions.json"), run_provenance(run, config)
        labels = {part: predictions[part]["classes"] if predictions[part] else [] for part in ("base", "novel")}
        write_text(folder / "config.yaml", to_yaml(portable(config)))
        sets = {name: [part["classes"] for part in predictions.get(name, [])] for name in ("srt", "srt_base")}
        about = {"labels": {**labels, **sets}, "results": results, "provenance": provenance}
        for name, facts in redacted(about).items():
            write_json(folder / f"{name}.json", facts)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        write_checksums(folder, {str(path.relative_to(folder)): file_sha256(path) for path in files})
        card = model_card(config, results, provenance, loads, comparison(config, model))
        write_text(folder / "README.md", redact(card))  # for others to add to
        folder.rename(output)


def read_exported(folder: Path) -> tuple[Config, DualEncoder]:
    """Configuration and model of an exported folder. Raises `RunError` naming what is missing."""
    for name in NEEDED:
        if not (folder / name).is_file():
            raise RunError(f"{folder / name} does not exist: {folder} is no export (`ace export` makes one)")
    files = {name: folder / name for name in NEEDED} | {
        name: folder / name for name in OPTIONAL if is_listed(folder, name)
    }
    if not check_checksums(folder, files, "copy the folder anew, or export its run again"):
        say_once(f"{folder} has no {CHECKSUMS}: it is used unchecked, as by the version that exported it")
    config = read_config(folder)
    attributes, tokenizer = (
        str(files[name]) if name in files else None for name in ("attributes.txt", "tokenizer.json")
    )
    similarity = replace(config.model.similarity, attributes=attributes)
    text = replace(config.model.text, tokenizer=tokenizer)
    dataset = replace(config.dataset, synonyms=str(files["synonyms.json"]))
    config = replace(config, dataset=dataset, model=replace(config.model, text=text, similarity=similarity))
    check_size(config.model, [path for path in files.values() if path.suffix == ".safetensors"])
    video = replace(config.model.video, attention="auto")  # which exports of before name as their run had it
    model = DualEncoder(video, config.model.text, similarity)
    load_encoders(model, folder)
    return config, model


def portable(config: Config) -> Config:
    """The configuration without paths of the machine that trained it and names of people, for an export's weights."""
    frames = config.dataset.clip.frames if config.model.video.tower == "timesformer" else config.model.video.frames
    here = {"run": "", "dataset.shards": "", "dataset.synonyms": "synonyms.json", "model.video.frames": frames}
    # An export is fp32, and goes where no 8-bit products and no kernels of a GPU are.
    here |= {"model.video.trunk_precision": "same", "model.video.attention": "auto"}
    here |= {f"model.{side}.{key}": off for side in ("video", "text") for key, off in NO_LORA.items()}
    here |= OF_PEOPLE | (OF_VALIDATION if config.evaluation.validation_groups else {})
    return replaced(config, {**dict.fromkeys(PATHS), **here})


def own_file(run: Path, config: Config, key: str) -> Path:
    """The file of a setting when it lies in the run, or ships with ace-dist.

    Whoever wrote the run wrote its settings too: one that names another file of this machine would have it published.
    """
    path = str(attrgetter(key)(config))
    file = resolve_path(path).resolve()
    if not any(file.is_relative_to(folder.resolve()) for folder in (run, assets_dir())):
        raise RunError(
            f"{run} has no copy of {key}={path}, and an export takes no file from elsewhere; if it belongs to the run, "
            f"copy it to {run / 'inputs' / KEPT[key]}"
        )
    return file


def run_provenance(run: Path, config: Config) -> dict[str, Any]:
    environment = read_run_object(run, "environment.json")
    facts = {key: environment.get(key) for key in ("python", "versions", "git", "hardware", "world_size")}
    began, licences, started_from = read_inputs(run)["files"], start_licences(run), {}
    for key, path in starting_weights(config).items():
        digest = began.get(key, {}).get("sha256")
        if key == "init_from":
            known = ", ".join(f"{licence} ({side})" for side, licence in licences.items()) or NOT_RECORDED
            named = {"file": absolute(path).name, LICENCE: known}
            started_from["run"] = named | ({"sha256": digest} if digest else {})
        else:
            side = key.split(".")[1]
            started_from[side] = {LICENCE: licences.get(side, NOT_RECORDED)} | weight_facts(path, digest)
    return {**facts, "started_from": started_from, "licences": licences}


def weight_facts(path: str, began: str | None) -> dict[str, str]:
    """Name, digest and metadata of a weight file that training started from, if it is the one with the digest `began`.

    A run of an earlier version has no digest: then only files that ship with ace-dist are read.
    """
    file = resolve_path(path)
    if not file.is_file():
        return {"file": file.name, "note": "no longer there when this was exported"}
    digest = file_sha256(file)
    if digest != began and not (began is None and file.resolve().is_relative_to(assets_dir())):
        return {"file": file.name, "note": "the file that is there now is not known to be the one it started from"}
    try:
        with safe_open(file, "pt") as tensors:
            return {"file": file.name, "sha256": digest, **(tensors.metadata() or {}), LICENCE: read_licence(file)}
    except SafetensorError as error:
        raise RunError(f"{file} is not a readable safetensors file: {error}") from error


def weights_note(config: Config) -> str:
    """A paragraph of the model card on weights that are not simply those after training; else nothing."""
    if (share := config.evaluation.interpolate) == 1:
        return ""
    return (
        f"Its weights lie at {share:g} of the way from those before training to those after (WiSE-FT, "
        f"`evaluation.interpolate={share:g}`).\n\n"
    )


def comparison(config: Config, model: DualEncoder) -> str:
    """A sentence of the model card: how the encoders' outputs become a score."""
    if config.model.similarity.spotting:
        return "A video's frames are weighed anew for each label, which `Classifier` alone does."
    bias, prompts = model.similarity.bias, config.model.text.prompts
    plus = "" if bias is None else f", plus the bias {float(bias.detach()):.4g}"
    means = "" if prompts == ["{}"] else " A label is encoded as the mean over the sentences of `model.text.prompts`."
    temperature = model.similarity.learned_temperature(config.method.temperature)
    return f"Compare unit vectors, divided by the temperature {temperature:.4g}{plus}.{means}"


def model_card(
    config: Config, results: dict[str, Any], provenance: dict[str, Any], loads: dict[str, str], compare: str
) -> str:
    """README.md: what it is, how to use it, its results, what it came from, and what it cannot do."""
    commit = markdown(str((provenance.get("git") or {}).get("commit") or "unknown"))
    starts = "\n".join(
        f"- {name}: {markdown(facts['file'])}, licence: {markdown(facts[LICENCE])}"
        for name, facts in provenance["started_from"].items()
    )
    binding = binding_licence(provenance.get("licences") or {})
    starts += f"\n\n**Not for commercial use**: {markdown(binding)}." if binding else ""
    method, dataset = markdown(config.method.name), markdown(config.dataset.name)
    clip, note = config.dataset.clip, weights_note(config)
    return f"""---
library_name: ace-dist
tags: [video-classification, action-recognition, zero-shot]
---
# {method} on {dataset}
A video-language dual encoder fine-tuned by ace-dist (method {method}, seed {config.seed}, commit
{commit}). It compares {clip.frames} frames of {clip.seconds:g} s at {config.loader.crop} pixels, normalised by mean
{config.loader.mean} and deviation {config.loader.std} of RGB in [0, 1], with any action labels.

## Use
    from ace_dist import Classifier
    Classifier.from_pretrained("THIS FOLDER").classify("clip.mp4", ["spin block", "hammer pin"])

{note}The encoders alone: video `{loads["video"]}`; text `{loads["text"]}`. {compare}

## Results of its run
{textwrap.indent(results_table(results), "    ", lambda line: True)}

Test clips of {dataset}, fold {config.dataset.fold}; one run. The labels are in `labels.json`.

## Started from
{starts or "- random weights"}

The licence of those weights binds what was trained from them: where it is non-commercial, so is this model.

## Limits
It knows the base actions of its training data and what their synonyms and its starting weights say of others; on videos
of another place, camera or domain its numbers above do not hold. Probabilities are relative to the labels given.
"""
