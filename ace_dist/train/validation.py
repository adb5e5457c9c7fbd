"""Validation while training: on which clips, with which weights, which result is the best, when to give up.

It looks at base actions alone, on groups of the training split that are held out (`data.sampling`), never at the test
split. A copy of the encoders is tested, so training goes on to the last bit as it would have without.
"""

import copy
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ace_dist.concepts import root_labels
from ace_dist.concepts.held_out_words import held_out_label_sets
from ace_dist.config import Config
from ace_dist.data.loader import build_loader
from ace_dist.data.task import Task, load_test_trees
from ace_dist.evaluate.metrics import srt_summary
from ace_dist.evaluate.protocols import accuracy_and_f1, encode_test, score
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.interpolation import interpolate
from ace_dist.models.weights import START, TRAINED, TensorFile
from ace_dist.train.callbacks import Callback, StepEnd
from ace_dist.train.checkpoint import Checkpoints
from ace_dist.train.engine import Engine

SPREAD = ("accuracy_mean", "accuracy_std", "f1_mean", "f1_std")


def copy_to_test(model: DualEncoder, config: Config) -> DualEncoder:
    """A copy of the encoders to test beside the ones that train, made before DeepSpeed takes those.

    It has their frozen weights, and its own of what trains. Under ZeRO 3 it has its own of all: there each rank keeps a
    piece, and ranks that validate unequal numbers of batches would wait for each other's pieces for ever.
    """
    shared = config.deepspeed.get("zero_optimization", {}).get("stage") != 3
    kept = {id(p): p for p in model.parameters() if not p.requires_grad} if shared else {}
    return copy.deepcopy(model, dict(kept))


class Validation(Callback):
    """The validations of one run; all that is asked of it has the same answer on every rank.

    `best` is the best result so far: its step and `scores`. It is compared by accuracy and, of equal ones, macro F1;
    with `training.keep_best=base_srt` by the mean of the base SRT and, of equal ones, its smaller spread. Of equal
    results the earlier one wins. `since_best` counts validations since then.
    """

    name = "validation"

    def __init__(self, config: Config, task: Task, model: DualEncoder | None, engine: Engine) -> None:
        self.config, self.task, self.engine, self.ranks = config, task, engine, engine.ranks
        self.model = model  # None: never validates
        self.every, self.patience = config.evaluation.every_steps, config.training.early_stopping_patience
        self.best: dict[str, Any] | None = None
        self.since_best = 0

    def due(self, done: int) -> bool:
        """Whether to validate after `done` steps: every so many, and at the end."""
        return self.model is not None and (done % self.every == 0 or done == self.engine.steps)

    def on_step_end(self, end: StepEnd) -> None:
        """When it is time, test the weights of the moment; save them when they are the best or the last. Collective."""
        if self.due(end.step):
            self.validate(end.step)
        end.stop, end.best_step = self.exhausted, self.best_step
        end.save = self.exhausted or self.best_step == end.step

    def validate(self, step: int) -> None:
        """Test the weights of the moment. Collective."""
        assert self.model is not None
        self.callbacks.on_stage("validation", step)
        started = time.perf_counter()
        own = dict(self.model.named_parameters())
        weights = self.engine.weights()
        if (share := self.config.evaluation.interpolate) != 1:
            weights = interpolate(TensorFile(Path(self.config.run) / "model" / START), weights, share)
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].copy_(weight)
        scores = self.ranks.gather(self.scores(step))[0]  # rank 0's, whatever the other devices round
        self.since_best += 1
        if self.best is None or self.rank(scores) > self.rank(self.best):
            self.best, self.since_best = {"step": step, **scores}, 0
        result = {f"validation_{name}": value for name, value in scores.items()}
        self.callbacks.on_result(step, {**result, "validating_s": time.perf_counter() - started})

    def scores(self, step: int) -> dict[str, float]:
        """Accuracy and macro F1 on the held-out clips, scored as test clips of base actions are, in percent.

        With `evaluation.validation_words` also the base SRT, mean and spread: the same clips under held-out words.
        """
        assert self.model is not None
        config, task, on_batch = self.config, self.task, partial(self.callbacks.on_stage, "validation", step)
        with closing(build_loader(config, self.ranks.device, self.model.frozen_part(config.loader))) as loader:
            encoded = encode_test(self.model, loader, task.validation_clips(), config, self.ranks, on_batch)
        roots = root_labels(task.classes.base, load_test_trees(config), config.method.leaf_augmentation)
        sets = held_out_label_sets(task.classes.base, task.held_out, config.seed) if task.held_out else []
        scores, *runs = map(accuracy_and_f1, score(self.model, encoded, [roots, *sets], config))
        if runs:
            base_srt = srt_summary(runs)
            scores |= {f"srt_{name}": base_srt[name] for name in SPREAD}
        return scores

    def rank(self, scores: dict[str, float]) -> tuple[float, float]:
        """What two results are compared by; the larger is better."""
        if self.config.training.keep_best == "base_srt":
            return scores["srt_accuracy_mean"], -scores["srt_accuracy_std"]
        return scores["accuracy"], scores["f1"]

    @property
    def exhausted(self) -> bool:
        """Whether `training.early_stopping_patience` validations in a row were no better than the best."""
        return bool(self.patience) and self.since_best >= self.patience

    @property
    def best_step(self) -> int | None:
        """The step whose weights are the result of the run; None: the last."""
        return self.best["step"] if self.best and self.config.training.keep_best else None

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "since_best": self.since_best}

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go on from `state` of the checkpoint that was restored; without the best checkpoint, compare anew.

        A run that has finished keeps its best all the same: its exported weights are those. Collective.
        """
        state = checkpoints.callbacks.get("validation", self.state())
        self.best, self.since_best = state["best"], state["since_best"]
        if (step := self.best_step) is None or checkpoints.has(step):
            return
        trained = Path(self.config.run) / "model" / TRAINED
        if self.ranks.gather(trained.is_file())[0] and (self.exhausted or checkpoints.last_step == self.engine.steps):
            return
        if self.ranks.is_first:
            print(f"the checkpoint of step {step}, the best so far, is gone: the next validation is best", flush=True)
        self.best, self.since_best = None, 0

    def __str__(self) -> str:
        """The best result, in words."""
        assert self.best is not None
        best, srt = self.best, ""
        if "srt_accuracy_mean" in best:
            srt = f", base SRT {best['srt_accuracy_mean']:.1f} ± {best['srt_accuracy_std']:.1f} %"
        scores = f"accuracy {best['accuracy']:.1f} %, macro F1 {best['f1']:.1f} %{srt}"
        return f"step {best['step']}, best of validation ({scores})"
