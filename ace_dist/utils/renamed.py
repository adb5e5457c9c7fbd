"""Modules of version 0.1 under their old names, for one release: an import works, and warns of the new name."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {  # below `ace_dist`; what stands below a renamed package moved with it unless it is named here
    "cluster.collect": "tools.study.collect", "cluster.run_list": "tools.study.run_list",
    "cluster.single": "cluster.submit", "cluster.study": "cluster.sweep", "cluster.submission": "cluster.submit",
    "cluster.sweeps": "cluster.sweep", "cluster.tables": "tools.study.tables",
    "concepts.diagnostics": "tools.synonyms.diagnostics", "concepts.generation": "tools.synonyms",
    "concepts.generation.budget": "tools.synonyms.client", "concepts.generation.cache": "tools.synonyms.client",
    "concepts.generation.forest": "tools.synonyms.build", "concepts.generation.prompt": "tools.synonyms.answers",
    "concepts.generation.sources": "tools.synonyms.build",
    "data.clips": "data.sampling", "data.csv_reader": "data.annotations.csv", "data.cutting": "data.build.cut",
    "data.dali": "data.loader.dali", "data.encoding": "data.build.encode", "data.holdout": "data.sampling",
    "data.identity": "data.sampling", "data.isolation": "data.build.isolation", "data.loading": "data.loader",
    "data.loose_video": "data.build.single_video", "data.pixels": "data.loader.pixels", "data.pyav": "data.loader.pyav",
    "data.readers": "data.annotations", "data.sample_table": "data.loader.sample_table",
    "data.shard_format": "data.shards", "data.single": "data.loader.single_video", "data.tabletop": "worlds.tabletop",
    "data.tabletop.render": "worlds.tabletop.rendering", "data.verify": "data.build.verify",
    "data.video_file": "data.build.decode",
    "determinism": "utils.determinism", "distributed": "utils.distributed", "errors": "utils.errors",
    "evaluation": "evaluate", "evaluation.chance": "evaluate.protocols", "evaluation.classifier": "classifier",
    "evaluation.study": "tools.study.rows", "evaluation.study_grid": "tools.study.grid",
    "evaluation.study_report": "tools.study.report", "evaluation.synonym_report": "tools.synonyms.text_report",
    "explorer": "tools.explorer", "files": "utils.files", "memory": "utils.memory", "methods": "objectives",
    "methods.ace": "objectives", "methods.chance": "objectives", "methods.lavila": "objectives",
    "methods.method": "objectives", "methods.procvlr": "objectives", "methods.text4vis": "objectives",
    "methods.vifi_ft": "objectives", "methods.vifi_pr": "objectives",
    "methods.label_objective": "objectives.label", "methods.objective": "objectives.concept",
    "methods.task": "data.task", "methods.trunk_cache": "data.loader.feature_cache",
    "models.exporting": "models.convert.exporting",
    "models.flops": "utils.parts", "models.frozen_trunk": "models.video", "models.image_tower": "models.vit",
    "models.importing": "models.convert.importing", "models.phrase_bank": "models.text_features",
    "models.weight_layouts": "models.convert.layouts", "rendezvous": "utils.distributed", "secrets": "utils.secrets",
    "training": "train", "training.agreement": "train.health", "training.checkpoints": "train.checkpoint",
    "training.estimate": "tools.estimate", "training.frozen": "train.checkpoint",
    "training.garbage": "train.callbacks", "training.guards": "train.health",
    "training.loop": "train.trainer", "training.meters": "train.metrics", "training.preemption": "train.health",
    "training.pretraining": "worlds.tabletop.pretraining", "training.profiling": "train.profile",
    "training.watchdog": "train.health", "transfer": "utils.memory",
}  # fmt: skip


def new_name(old: str) -> str | None:
    """The new dotted name of a module, `None` for one that was not renamed."""
    below, rest = old.removeprefix("ace_dist."), ""
    while below and old.startswith("ace_dist."):
        if below in MODULES:
            return f"ace_dist.{MODULES[below]}{rest}"
        below, _, last = below.rpartition(".")
        rest = f".{last}{rest}"
    return None


class OldNames(MetaPathFinder, Loader):
    """Asked before Python's own finders, which would load a module of a renamed package a second time."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if new_name(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        new = new_name(module.__name__)
        assert new is not None
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


def install() -> None:
    sys.meta_path.insert(0, OldNames())
