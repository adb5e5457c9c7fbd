"""The training loop: fetch, forward, backward, agree, step, log, save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ace_dist.data.identity import claim_clips
from ace_dist.data.loader.feature_cache import open_loader
from ace_dist.data.sampling import ClipRequest, TrainPlan
from ace_dist.data.task import NO_TEST, load_task
from ace_dist.models.build import build_model
from ace_dist.models.flops import whole_size
from ace_dist.models.weights import TensorFile, save_safetensors
from ace_dist.objectives import build_objective, total_loss
from ace_dist.train.agreement import Agreement, on_first
from ace_dist.train.checkpoint import Checkpoints
from ace_dist.train.engine import Engine, micro_batch_size
from ace_dist.train.frozen import store_frozen
from ace_dist.train.garbage import GarbageCollection
from ace_dist.train.guards import LossGuard, RunLock
from ace_dist.train.meters import Meters, write_summary
from ace_dist.train.monitor import Monitor
from ace_dist.train.preemption import EXIT_CODES, ORDER, Preemption
from ace_dist.train.profiling import Profiler
from ace_dist.train.run_folder import claim
from ace_dist.train.schedule import total_steps
from ace_dist.train.trackers import require_trackers
from ace_dist.train.validation import Validation, copy_to_test
from ace_dist.train.watchdog import Watchdog
from ace_dist.utils.determinism import deterministic
from ace_dist.utils.distributed import seed_everything

if TYPE_CHECKING:
    from torch import Tensor

    from ace_dist.config import Config
    from ace_dist.data.task import Task
    from ace_dist.objectives import ConceptObjective
    from ace_dist.utils.distributed import Ranks


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
    preemption: Preemption
    agreement: Agreement
    validation: Validation
    steps: int


def train(config: Config, ranks: Ranks) -> Outcome:
    """Train a run to its end, continuing it when its folder holds a checkpoint. Every rank calls this.

    It ends early, saved, after `training.stop_after_steps` steps or when a signal asks for it (see `preemption`); it is
    finished early when validation does not improve any more (`training.early_stopping_patience`).
    """
    lock = RunLock(Path(config.run))
    with Preemption() as preemption, closing(lock), deterministic(config.training.deterministic):
        training = build(config, ranks, preemption, lock)
        start, validation = restore(training), training.validation
        last = min(training.steps, start + (config.training.stop_after_steps or training.steps))
        step, stopped = take_steps(training, start, start if validation.exhausted else last)
        if stopped is None and (step == training.steps or validation.exhausted):
            export(training, step)
            stopped = ORDER[training.agreement.reach(wish=preemption.rank())["wish"]]  # else it would be lost
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
    if (carried := checkpoints.carried.get("validation")) is not None:
        validation.resume(carried)
    if validation.kept_step is not None and not checkpoints.has(validation.kept_step):
        validation.forget_best()
    return start


def build(config: Config, ranks: Ranks, preemption: Preemption, lock: RunLock) -> Training:
    """Open the data, build the encoders and the objective, claim the run folder, build the engine.

    The folder is claimed once everything that a user can get wrong has been read: a start that failed leaves it free.
    """
    run_dir = Path(config.run)
    task, plan, objective = assemble(config, ranks)
    on_first(ranks, claim, run_dir, config, lock)
    on_first(ranks, claim_clips, run_dir, config.dataset.shards, *task.training_clips())
    steps = total_steps(config.training, len(plan.records))
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
    validation = Validation(config, task, twin.bfloat16() if twin and engine.bf16 else twin, ranks, steps)
    if ranks.is_first:
        print(describe(task, plan, engine, steps), flush=True)
    checkpoints = Checkpoints(run_dir, engine, ranks, config.training, frozen or "", lock)
    agreement = Agreement(ranks, config.training.collective_timeout_s)
    return Training(
        config, ranks, run_dir, task, objective, plan, engine, checkpoints, preemption, agreement, validation, steps
    )  # fmt: skip


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
    """Steps `start` to `last`: fetch, forward, backward, agree, step, log, save.

    Returns the steps done, of which the last is saved, and the signal's meaning when one ended them.
    """
    config, ranks, plan, engine = training.config, training.ranks, training.plan, training.engine
    model, sampler, parts = training.objective.model, training.objective.sampler, config.training.accumulation
    checkpoints, validation, guard = training.checkpoints, training.validation, LossGuard(ranks)
    meters = Meters.of(config, engine, ranks)
    model.train()
    with (
        closing(open_loader(config, model, ranks.device)) as loader,
        closing(checkpoints),
        Monitor(
            training.run_dir, ranks, start, training.steps, config.training, meters, checkpoints.carried.get("log")
        ) as monitor,
        Watchdog(training.run_dir, ranks, training.agreement, config.training) as watchdog,
        GarbageCollection(config.training.gc_every_steps) as garbage,
        Profiler(config.training.profile, training.run_dir, ranks, training.objective, watchdog, meters) as profiler,
    ):
        stream = loader.stream(micro_batches(plan, start, last, parts))
        done, stopped = start, None
        while done < last and stopped is None and not validation.exhausted:
            profiler.step()
            draw = sampler.draw(done)  # the same on every rank
            rates = engine.set_learning_rates(done)
            for micro in range(parts):
                watchdog.enter("data", done)
                batch = next(stream)  # decoded on the device, already normalised
                model.set_step(config.seed, done, ranks.rank * parts + micro, ranks.world * parts)
                watchdog.enter("forward")
                losses = engine.forward(batch, draw)
                loss = total_loss(losses)
                guard.note(loss, batch)
                monitor.add(loss, losses)  # no host sync unless this step is logged
                watchdog.enter("backward")
                engine.backward(loss)
                if micro == parts - 1:
                    meters.note_memory(engine)  # once
                    watchdog.enter("collective")
                    stopped, save = agree(training, guard, done)  # before the optimizer moves
                watchdog.enter("step")
                engine.step()
            engine.average()
            done += 1
            monitor.record(done, done * plan.batch_size / len(plan.records), rates, loader.wait_s)
            if validation.due(done):
                watchdog.enter("validation", done)
                found = validation.step(done, engine.weights(), partial(watchdog.enter, "validation"))
                meters.aside_s += found["validating_s"]  # no part of the pace of training
                monitor.note(done, found)
            if save or stopped or checkpoints.due(done) or validation.keeps(done) or done == last:
                watchdog.enter("save")
                carried = {"log": monitor.carry(done, loader.wait_s), "validation": validation.carry()}
                checkpoints.save(done, carried, validation.kept_step)  # gathered now, written while training goes on
            garbage.step(done)
        checkpoints.finish()
    on_first(ranks, write_summary, training.run_dir, start, done, meters.summary())
    return done, stopped


def agree(training: Training, guard: LossGuard, step: int) -> tuple[str | None, bool]:
    """What the ranks agree on within a step: who wants to stop after it, and whether it is time to save.

    Raises `NonFiniteLoss` on every rank when the loss of one is not finite.
    """
    agreed = training.agreement.reach(
        bad=guard.bad(), wish=training.preemption.rank(), save=training.checkpoints.overdue()
    )  # fmt: skip
    if agreed["bad"]:
        raise guard.error(step)
    guard.passed()
    return ORDER[agreed["wish"]], bool(agreed["save"])


def export(training: Training, step: int) -> None:
    """Write the weights that the run is tested with, in fp32, for others too: the last, or the best. Collective.

    Which they are stands in the file's metadata, for `results.json`.
    """
    engine, validation, decay = training.engine, training.validation, training.config.training.ema_decay
    part = "average" if decay else "weights"
    chosen = f"step {step}" if validation.kept_step is None else str(validation)
    about = f"{chosen}, running average (EMA {decay:g})" if decay else chosen
    if validation.kept_step in (None, step):
        weights: Mapping[str, Tensor] | None = engine.weights()
    else:
        weights = on_first(training.ranks, training.checkpoints.kept, validation.kept_step, part)
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


def describe(task: Task, plan: TrainPlan, engine: Engine, steps: int) -> str:
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
        f"steps: {steps} of {plan.batch_size} clips ({plan.steps_per_epoch} an epoch) on {engine.ranks.world} rank(s), "
        f"{'bf16' if engine.bf16 else 'fp32'} on {engine.ranks.device}"
        + ("" if task.is_tested() else f"\nwarning: {NO_TEST}, so the evaluation at the end will score nothing")
    )


def held_out(task: Task) -> str:
    """What validates, for the console; empty when nothing does."""
    if not task.validation:
        return ""
    return f", held out for validation: {len(task.validation_clips()[0])} of {', '.join(sorted(task.validation))}"
