"""The training loop: fetch, forward, backward, step, log, save; and what is built for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ace_dist.data.loader import build_loader
from ace_dist.data.sampling import ClipRequest, TrainPlan, claim_clips
from ace_dist.data.task import NO_TEST, load_task
from ace_dist.models.build import build_model
from ace_dist.models.weights import TensorFile, save_safetensors
from ace_dist.objectives import build_objective, total_loss
from ace_dist.train.callbacks import Callbacks, GarbageCollection, StepEnd
from ace_dist.train.checkpoint import Checkpoints
from ace_dist.train.engine import Engine, micro_batch_size, whole_size
from ace_dist.train.frozen import store_frozen
from ace_dist.train.health import EXIT_CODES, Health, StopSignal, Watchdog
from ace_dist.train.metrics import Meters, step_flops, write_summary
from ace_dist.train.monitor import Monitor
from ace_dist.train.profile import Profiler
from ace_dist.train.run_folder import claim
from ace_dist.train.run_lock import RunLock
from ace_dist.train.schedule import total_steps
from ace_dist.train.trackers import require_trackers
from ace_dist.train.validation import Validation, copy_to_test
from ace_dist.utils.determinism import deterministic
from ace_dist.utils.distributed import on_first, seed_everything

if TYPE_CHECKING:
    from torch import Tensor

    from ace_dist.config import Config
    from ace_dist.data.task import Task
    from ace_dist.objectives import ConceptObjective
    from ace_dist.utils.distributed import Ranks
    from ace_dist.utils.parts import Flops


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its folder, the steps done, and why it ended before its last step (None when it did not)."""

    run_dir: Path
    step: int
    stopped: str | None = None  # stop_after_steps | preempted | interrupted

    @property
    def exit_code(self) -> int:
        """Exit status of the process: 0, 75 (preempted: try again), 130 (interrupted)."""
        return EXIT_CODES[self.stopped]


@dataclass(frozen=True)
class Training:
    """Everything that one run's loop uses, built from its configuration."""

    config: Config
    ranks: Ranks
    run_dir: Path
    task: Task
    objective: ConceptObjective
    plan: TrainPlan
    engine: Engine
    checkpoints: Checkpoints
    health: Health
    validation: Validation
    steps: int
    flops: Mapping[str, Flops]  # of a step, by part

    def reads_losses(self, done: int) -> bool:
        """Whether the host reads losses or weights after `done` steps anyway: to log, to save, to validate."""
        logged = done % self.config.training.log_every_steps == 0 or done == self.steps
        return logged or self.checkpoints.due(done) or self.validation.due(done)


def train(config: Config, ranks: Ranks) -> Outcome:
    """Train a run to its end, continuing it when its folder holds a checkpoint. Every rank calls this.

    It ends early, saved, after `training.stop_after_steps` steps or when a signal asks for it (`StopSignal`); it is
    finished early when validation does not improve any more (`training.early_stopping_patience`).
    """
    lock = RunLock(Path(config.run))
    with StopSignal() as stop_signal, closing(lock), deterministic(config.training.deterministic):
        training = build(config, ranks, stop_signal, lock)
        start, validation = restore(training), training.validation
        last = min(training.steps, start + (config.training.stop_after_steps or training.steps))
        step, stopped = take_steps(training, start, start if validation.exhausted else last)
        if stopped is None and (step == training.steps or validation.exhausted):
            export(training, step)
            stopped, _ = training.health.check(step)  # a signal that came meanwhile would be lost
            if stopped is None:
                return Outcome(training.run_dir, step)
    outcome = Outcome(training.run_dir, step, stopped or "stop_after_steps")
    if ranks.is_first:
        how = "stopped" if stopped is None else stopped
        print(f"{how} after step {step} of {training.steps}; the same command continues", flush=True)
    return outcome


def restore(training: Training) -> int:
    """Continue where the newest checkpoint is; returns the steps done. Collective."""
    checkpoints, validation = training.checkpoints, training.validation
    start = checkpoints.restore()
    if (state := checkpoints.callbacks.get("validation")) is not None:
        validation.resume(state)
    if validation.best_step is not None and not checkpoints.has(validation.best_step):
        validation.forget_best()
    return start


def build(config: Config, ranks: Ranks, stop_signal: StopSignal, lock: RunLock) -> Training:
    """Open the data, build the encoders and the objective, claim the run folder, build the engine.

    The folder is claimed once everything that a user can get wrong has been read: a start that failed leaves it free.
    """
    run_dir = Path(config.run)
    task, plan, objective = assemble(config, ranks)
    on_first(ranks, claim, run_dir, config, lock)
    on_first(ranks, claim_clips, run_dir, config.dataset.shards, *task.training_clips())
    steps = total_steps(config.training, len(plan.records))
    flops = step_flops(config, objective, ranks.world)
    frozen = on_first(ranks, store_frozen, run_dir, objective.model.frozen_state_dict())  # before a cast to bf16
    twin = copy_to_test(objective.model, config) if config.evaluation.every_steps else None
    objective.model.compile_blocks()
    engine = Engine(config, objective, ranks, steps)
    if config.model.text.release_frozen:
        stored = TensorFile(run_dir / "model" / "frozen.safetensors")
        if engine.stage != 3:  # which has shared them out among the ranks
            objective.model.release_text(stored)
        if twin is not None:
            twin.release_text(stored)
    validation = Validation(config, task, twin.bfloat16() if twin and engine.bf16 else twin, engine)
    if ranks.is_first:
        print(describe(task, plan, engine), flush=True)
    checkpoints = Checkpoints(run_dir, engine, ranks, config.training, frozen or "")
    health = Health(ranks, config.training.collective_timeout_s, stop_signal)
    return Training(
        config, ranks, run_dir, task, objective, plan, engine, checkpoints, health, validation, steps, flops
    )


def assemble(config: Config, ranks: Ranks) -> tuple[Task, TrainPlan, ConceptObjective]:
    """Read all that a configuration names: the data, the encoders, the objective. Writes nothing."""
    micro_batch_size(config, ranks.world)
    require_trackers(config.training.trackers)
    seed_everything(config.seed)
    task = load_task(config)
    records, labels = task.training_clips()
    plan = TrainPlan(
        records, labels, config.dataset.clip, config.loader, config.training.batch_size, config.seed,
        ranks.rank, ranks.world,
    )  # fmt: skip
    model = build_model(config.model, config.seed).to(ranks.device)
    return task, plan, build_objective(config, model, task.classes.base, task.trees)


def take_steps(training: Training, start: int, last: int) -> tuple[int, str | None]:
    """Steps `start` to `last`: fetch, forward, backward, step, log, save.

    Returns the steps done, of which the last is saved, and the signal's meaning when one ended them.
    """
    config, ranks, plan, engine = training.config, training.ranks, training.plan, training.engine
    model, sampler, parts = training.objective.model, training.objective.sampler, config.training.accumulation
    checkpoints, validation, health = training.checkpoints, training.validation, training.health
    meters = Meters.build(config, engine, training.flops)
    model.train()
    with (
        closing(build_loader(config, ranks.device, model.frozen_part(config.loader))) as loader,
        closing(checkpoints),
        build_callbacks(training, start, meters) as callbacks,
    ):
        stream = loader.stream(micro_batches(plan, start, last, parts))
        step, stopped = start, None
        while step < last and stopped is None and not validation.exhausted:
            callbacks.on_step_begin(step)
            draw = sampler.draw(step)  # the same on every rank
            rates = engine.set_learning_rates(step)
            for micro in range(parts):
                callbacks.on_stage("data", step)
                batch = next(stream)  # decoded on the device, already normalised
                model.set_step(config.seed, step, ranks.rank * parts + micro, ranks.world * parts)
                callbacks.on_stage("forward", step)
                losses = engine.forward(batch, draw)
                loss = total_loss(losses)
                health.note(step, loss, batch)
                callbacks.on_micro_batch(losses, loss)  # no host sync unless this step is logged
                callbacks.on_stage("backward", step)
                engine.backward(loss)
                if micro == parts - 1:  # before the optimizer moves
                    callbacks.on_stage("collective", step)
                    stopped, overdue = health.check(step, checkpoints.overdue(), wait=training.reads_losses(step + 1))
                callbacks.on_stage("step", step)
                engine.step()
            if engine.skipped:
                raise health.explain_skipped(step)
            engine.average()
            step += 1
            epoch = step * plan.batch_size / len(plan.records)
            callbacks.on_step_end(StepEnd(step, epoch, rates, loader.wait_s))  # log, validate
            if overdue or stopped or checkpoints.due(step) or validation.keeps(step) or step == last:
                callbacks.on_stage("save", step - 1)
                health.check(step - 1, wait=True)
                checkpoints.save(step, callbacks.state(), validation.best_step)  # written while training goes on
        checkpoints.finish()
    on_first(ranks, write_summary, training.run_dir, start, step, meters.summary())
    return step, stopped


def build_callbacks(training: Training, start: int, meters: Meters) -> Callbacks:
    """Everything that listens to the loop. Garbage is collected last; on closing, the log outlives the watchdog."""
    config, ranks, run_dir = training.config.training, training.ranks, training.run_dir
    line = training.checkpoints.callbacks.get("log")
    return Callbacks(
        [
            meters,
            Monitor(run_dir, ranks, start, training.steps, config, meters, line),
            Watchdog(run_dir, ranks, training.health.flags, config),
            Profiler(config.profile, run_dir, ranks, meters),
            training.validation,
            GarbageCollection(config.gc_every_steps),
        ]
    )


def export(training: Training, step: int) -> None:
    """Write the weights that the run is tested with, in fp32, for others too: the last, or the best. Collective.

    Which they are stands in the file's metadata, for `results.json`.
    """
    engine, validation, decay = training.engine, training.validation, training.config.training.ema_decay
    part = "average" if decay else "weights"
    chosen = f"step {step}" if validation.best_step is None else str(validation)
    about = f"{chosen}, running average (EMA {decay:g})" if decay else chosen
    if validation.best_step in (None, step):
        weights: Mapping[str, Tensor] | None = engine.weights()
    else:
        weights = on_first(training.ranks, training.checkpoints.read_part, validation.best_step, part)
    path = training.run_dir / "model" / "trained.safetensors"
    on_first(training.ranks, save_safetensors, weights or {}, path, metadata={"weights": about})
    if training.ranks.is_first:
        if step < training.steps:
            print(f"ended early: the last {validation.since_best} validations were no better than the best", flush=True)
        print(f"weights that are tested and exported: {about}", flush=True)


def micro_batches(plan: TrainPlan, start: int, end: int, parts: int) -> Iterator[list[ClipRequest]]:
    """This rank's micro-batches of steps `start` to `end`, `parts` a step, in order."""
    for step in range(start, end):
        requests = plan.requests(step)
        size = len(requests) // parts
        for first in range(0, len(requests), size):
            yield requests[first : first + size]


def describe(task: Task, plan: TrainPlan, engine: Engine) -> str:
    """What is about to be trained, for the console."""
    base, novel = len(task.classes.base), len(task.classes.novel)
    trainable = {
        name: sum(map(whole_size, params)) for name, params in engine.module.model.trainable_parameters().items()
    }
    every = sum(map(whole_size, engine.module.model.parameters()))
    return (
        f"classes: {base} base, {novel} novel; training clips: {len(plan.records)}{held_out(task)}\n"
        f"parameters: {every:,}, of which train {trainable['video']:,} (video) and {trainable['text']:,} (text)\n"
        f"phrases: {len(engine.module.text_features)} encoded once ({engine.module.text_features.memory_mib:.2f} MiB)\n"
        f"steps: {engine.steps} of {plan.batch_size} clips ({plan.steps_per_epoch} an epoch) "
        f"on {engine.ranks.world} rank(s), "
        f"{'bf16' if engine.bf16 else 'fp32'} on {engine.ranks.device}"
        + ("" if task.is_tested() else f"\nwarning: {NO_TEST}, so the evaluation at the end will score nothing")
    )


def held_out(task: Task) -> str:
    """What validates, for the console; empty when nothing does."""
    if not task.validation:
        return ""
    return f", held out for validation: {len(task.validation_clips()[0])} of {', '.join(sorted(task.validation))}"
