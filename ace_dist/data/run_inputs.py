"""What a run folder keeps of the files that its settings name, so that it can be used, moved and continued anywhere.

inputs/
    synonyms.json, srt.json, ...   copies of the files of words (`KEPT`)
    inputs.json                    where each file was read from and its SHA-256, the folder of the shards, the base
                                   and novel actions, and a digest of the test clips
"""

import copy
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from ace_dist.concepts.trees import MAKING
from ace_dist.config import Config, read_config, resolve_path
from ace_dist.data.shards import MANIFEST, ShardSet
from ace_dist.utils.console import say_once
from ace_dist.utils.errors import RunError, UserError, listing
from ace_dist.utils.files import file_sha256, write_bytes, write_json
from ace_dist.utils.reading import read_object

KEPT = {  # setting -> name of the copy
    "dataset.synonyms": "synonyms.json",
    "dataset.classes": "classes.json",
    "dataset.srt": "srt.json",
    "dataset.srt_base": "srt_base.json",
    "evaluation.synonyms": "test_synonyms.json",
    "model.similarity.attributes": "attributes.txt",
    "model.text.tokenizer": "tokenizer.json",
}
ORIGINS = {"dataset.synonyms": MAKING, "model.text.tokenizer": "`ace models` says where it comes from"}
# Recorded, not copied: `model/` holds what is used of them. `init_from` is a folder, known by its trained weights.
WEIGHTS = ("model.video.weights", "model.text.weights")
PARENT = "model/trained.safetensors"
# Settings that say where something lies. They may change between the starts of a run; what lies there may not.
PATHS = ("dataset.shards", "dataset.root", "dataset.annotations", "loader.feature_cache", "init_from", *KEPT, *WEIGHTS)
NO_RUN = {  # a file -> what a folder with it is, and what else its owner may have meant
    "provenance.json": (
        "an export",
        "; to start from its weights, give the folder of the run that was exported as init_from=DIR too",
    ),
    MANIFEST: ("a folder of shards", ""),
    "sweep.json": ("a sweep, whose runs are the folders in it", ""),
}


def check_files(config: Config) -> None:
    """Raise `UserError` naming every file of words that a setting names and of which the run has no copy either.

    Some are read after the last step only, so a start that does not look for them fails hours later.
    """
    begun, kept = has_begun(Path(config.run)), Path(config.run) / "inputs"
    missing = [
        f"{key}={path}" + (f" ({ORIGINS[key]})" if key in ORIGINS else "")
        for key, path in named_files(config).items()
        if not resolve_path(path).is_file() and not (begun and (kept / KEPT[key]).is_file())
    ]
    if missing:
        raise UserError(f"files that the run or its test will read do not exist:{listing(missing)}")


def named_files(config: Config, settings: Mapping[str, str] | tuple[str, ...] = KEPT) -> dict[str, str]:
    """Setting -> path of each of the `settings` that is not null."""
    return {key: path for key in settings if (path := attrgetter(key)(config))}


def keep_inputs(run_dir: Path, config: Config, task: Mapping[str, Any]) -> None:
    """Write `inputs/` of a run that starts; `task` goes into `inputs.json` too."""
    folder = run_dir / "inputs"
    folder.mkdir(exist_ok=True)
    facts: dict[str, dict[str, Any]] = {
        key: {"path": str(absolute(path)), "sha256": file_sha256(named_file(key, path))}
        for key, path in starting_weights(config).items()
    }
    if config.init_from:
        facts["init_from"]["parent"] = read_inputs(absolute(config.init_from))["files"].get("init_from")
    for key, path in named_files(config).items():
        data = absolute(path).read_bytes()
        write_bytes(folder / KEPT[key], data)
        facts[key] = {"path": str(absolute(path)), "sha256": file_sha256(folder / KEPT[key])}
    write_json(folder / "inputs.json", {"shards": str(absolute(config.dataset.shards)), "files": facts, **task})


def note_shards(run_dir: Path, config: Config) -> None:
    """Of a run that goes on: note where its clips lie now."""
    path, shards = run_dir / "inputs" / "inputs.json", str(absolute(config.dataset.shards))
    inputs = read_object(path, RunError)
    if inputs["shards"] != shards:
        write_json(path, {**inputs, "shards": shards})


def starting_weights(config: Config) -> dict[str, str]:
    """Setting -> path of what gives a new run its weights: another run, or the files of weights that are used."""
    if config.init_from:
        return {"init_from": config.init_from}
    return named_files(config, {"weights": WEIGHTS, "random_video": WEIGHTS[1:]}.get(config.model.init, ()))


def absent_here(config: Config) -> list[str]:
    """Shards and weights that a training will read and that this machine does not see, as `setting=path`."""
    needed = {} if has_inputs(Path(config.run)) else starting_weights(config)
    found = [f"{key}={path}" for key, path in needed.items() if not named_file(key, path).is_file()]
    if not (resolve_path(config.dataset.shards) / MANIFEST).is_file():
        found.append(f"dataset.shards={config.dataset.shards}")
    return found


def named_file(key: str, path: str) -> Path:
    """The file that a setting names; of `init_from` the trained weights."""
    return absolute(path) / PARENT if key == "init_from" else absolute(path)


def has_begun(run_dir: Path) -> bool:
    """Whether a step of the run was logged or saved, or its weights exported. Else its copies are of no run."""
    logged = any(path.stat().st_size for path in run_dir.glob("metrics*.jsonl"))
    return logged or any(run_dir.glob("checkpoints/step-*")) or (run_dir / PARENT).is_file()


def has_inputs(run_dir: Path) -> bool:
    return has_begun(run_dir) and (run_dir / "inputs" / "inputs.json").is_file()


def read_inputs(run_dir: Path) -> dict[str, Any]:
    """`inputs/inputs.json`; of a run of an earlier version nothing. Raises `RunError` when it cannot be read."""
    path = run_dir / "inputs" / "inputs.json"
    if not path.is_file():
        return {"files": {}} | dict.fromkeys(("shards", "base", "novel", "test", "start_sha256", "licences"))
    try:
        inputs = read_object(path, RunError)
        known = {key: inputs[key] for key in ("shards", "files", "base", "novel", "test", "start_sha256")}
        return known | {"licences": inputs.get("licences")}  # runs of before have none
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}); bring it back from a backup") from error


def check_start(config: Config) -> None:
    """Raise `UserError` for a run folder that is something else, and for shards and files of words that are not there.

    A training finds out too, after torch and DeepSpeed have been imported, which takes seconds.
    """
    check_run_place(Path(config.run))
    ShardSet.load(resolve_path(config.dataset.shards))
    check_files(config)
    if config.init_from and not has_inputs(Path(config.run)):  # a run that goes on has its weights
        check_parent(config.init_from, Path(config.run))


def check_parent(init_from: str, run_dir: Path) -> None:
    """Raise `UserError` for an `init_from` that is no run folder, or the run's own."""
    parent = resolve_path(init_from)
    if parent.absolute() == run_dir.absolute():
        raise RunError(f"init_from={init_from} is the run itself; choose another folder with run=DIR")
    if (parent / "video").is_dir():
        raise RunError(f"init_from={init_from} is an export; give the folder of the run that was exported")
    read_config(parent)  # which says what is no run folder


def check_run_place(folder: Path) -> None:
    """Raise `RunError` for a folder of ours that is no run: a training would write among its files."""
    if not (folder / "environment.json").is_file():
        for name, (kind, advice) in NO_RUN.items():
            if (folder / name).is_file():
                raise RunError(f"run={folder} is {kind}; give the training another folder with run=DIR{advice}")


def results_place(run_dir: Path, output: str | None) -> Path | None:
    """Where `output` asks for the results of a run; None: in the run itself, which may be spelled in another way.

    Raises `RunError` for another folder of ours, whose results or files they would replace.
    """
    if output is None or Path(output).resolve() == run_dir.resolve():
        return None
    kinds = {"environment.json": "another run", **{name: kind for name, (kind, _) in NO_RUN.items()}}
    for name, kind in kinds.items():
        if (Path(output) / name).is_file():
            raise RunError(f"output={output} is {kind}; choose another folder for the results of {run_dir}")
    return Path(output)


def check_model_folder(folder: Path) -> None:
    """Raise `UserError` for a folder that is neither a run nor an export; needs no torch."""
    if not (folder / "video").is_dir():
        run_config(folder)


def check_is_run(folder: Path) -> None:
    """Raise `RunError` for an export, which holds a model and nothing of its run."""
    if (folder / "provenance.json").is_file() and not (folder / "environment.json").is_file():
        raise RunError(
            f"run={folder} is an export, which `ace classify`, `ace segment` and `Classifier` use; this command needs "
            f"the run folder that it was made of"
        )


def run_config(run_dir: Path, shards: str | None = None) -> Config:
    """The configuration of a run as it can be used here: its folder, its own files of words, the clips of `shards`.

    Without `shards` they are where the run read them. Raises `UserError` for a run of an earlier version, which keeps
    no files of its own, when one of them is missing.
    """
    check_is_run(run_dir)
    config = read_config(run_dir)
    kept = {key: run_dir / "inputs" / name for key, name in KEPT.items() if attrgetter(key)(config)}
    own = {key: str(path) for key, path in kept.items() if path.is_file()}
    check_copies(run_dir, own)
    for key in kept.keys() - own.keys():
        path = attrgetter(key)(config)
        if not resolve_path(path).is_file():
            raise RunError(
                f"{run_dir} has no copy of {key}={path} and that file does not exist here; copy it to {kept[key]}"
            )
    clips = resolve_path(shards or read_inputs(run_dir)["shards"] or config.dataset.shards)
    return replaced(config, {**own, "run": str(run_dir), "dataset.shards": str(clips)})


def check_copies(run_dir: Path, own: Mapping[str, str | Path]) -> None:
    """Raise `RunError` when a run's own copy of a file is not what `inputs.json` says that it was."""
    known = read_inputs(run_dir)["files"]
    for key, path in own.items():
        if key in known and file_sha256(Path(path)) != known[key]["sha256"]:
            raise RunError(
                f"{path} is damaged: its SHA-256 is not the one in inputs.json beside it; bring it back from a backup, "
                f"or from {known[key]['path']} ({key}), of which it was a copy"
            )


def with_own_inputs(run_dir: Path, config: Config) -> Config:
    """The configuration of a run that goes on: a file of words that is not there any more is the run's own copy."""
    gone = [key for key, path in named_files(config).items() if not absolute(path).is_file()]
    own = (
        {key: path for key in gone if (path := run_dir / "inputs" / KEPT[key]).is_file()} if has_begun(run_dir) else {}
    )
    check_copies(run_dir, own)
    for key, path in own.items():
        say_once(f"{key}={attrgetter(key)(config)} does not exist here: the run's own copy is read, {path}")
    return replaced(config, {key: str(path) for key, path in own.items()})


def changed_inputs(run_dir: Path, config: Config) -> list[str]:
    """Each file that a setting names and that is not the one that the run began with, in words."""
    known, before, changes = read_inputs(run_dir)["files"], read_config(run_dir), []
    for key, path in {**named_files(config), **starting_weights(config)}.items():
        here, old = named_file(key, path), attrgetter(key)(before)
        if old is None or not here.is_file():
            continue  # which is said elsewhere
        began = known.get(key, {"path": str(absolute(old)), "sha256": None})
        if str(absolute(path)) == began["path"] and (key in WEIGHTS or not known):
            continue  # large, and the checksum of the frozen weights is compared later; or of an earlier version
        if not known and (former := named_file(key, old)).is_file():
            began["sha256"] = file_sha256(former)
        if file_sha256(here) != began["sha256"]:
            changes.append(f"{key}={path} is not the file that it was")
    return changes


def replaced(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of the configuration with other values of dotted settings."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        part, _, name = key.rpartition(".")
        setattr(attrgetter(part)(config) if part else config, name, value)
    return config


def absolute(path: str) -> Path:
    return resolve_path(path).absolute()
