"""The training loop: fetch, forward, backward, step, log, save; and what is built for it."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ace_dist.config import Config, TrainingConfig, resolve_path
from ace_dist.data.loader import build_loader
from ace_dist.data.run_inputs import (
    check_parent,
    has_inputs,
    keep_inputs,
    named_file,
    note_shards,
    read_inputs,
    starting_weights,
    with_own_inputs,
)
from ace_dist.data.sampling import ClipRequest, TrainPlan, claim_clips
from ace_dist.data.task import NO_TEST, Task, describe_task, load_task, load_test
from ace_dist.evaluate.caveats import few_steps, shortened
from ace_dist.evaluate.protocols import rehearse
from ace_dist.models.build import build_model
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.weights import FROZEN, START, TRAINED, TensorFile, load_tensors, read_licence, save_safetensors
from ace_dist.objectives import ConceptObjective, build_objective, total_loss
from ace_dist.train.augment import augment
from ace_dist.train.callbacks import Callbacks, GarbageCollection, StepEnd
from ace_dist.train.checkpoint import CheckpointFolder, Checkpoints, read, store_frozen
from ace_dist.train.engine import Engine, micro_batch_size
from ace_dist.train.health import EXIT_CODES, Health, StopSignal, Watchdog
from ace_dist.train.metrics import Meters, step_flops, write_summary
from ace_dist.train.monitor import Monitor
from ace_dist.train.profile import Profiler
from ace_dist.train.run_folder import claim, set_results_aside, write_start
from ace_dist.train.run_lock import RunLock
from ace_dist.train.schedule import average_share, lr_factor, total_steps
from ace_dist.train.trackers import require_trackers
from ace_dist.train.validation import Validation, copy_to_test
from ace_dist.utils.console import say_once
from ace_dist.utils.determinism import deterministic
from ace_dist.utils.distributed import Ranks, on_first, seed_everything, uses_bf16
from ace_dist.utils.errors import ConfigError, RunError
from ace_dist.utils.files import check_checksums, write_checksums
from ace_dist.utils.parts import Flops

EARLY_STEPS = 10  # a learning rate that has fallen by then was never at work


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
    run_dir: Path
    plan: TrainPlan
    engine: Engine
    checkpoints: Checkpoints
    validation: Validation
    health: Health
    flops: Mapping[str, Flops]  # of a step, by part
    start: int  # steps done by earlier starts of the run


def train(config: Config, ranks: Ranks) -> Outcome:
    """Train a run to its end, continuing it when its folder holds a checkpoint. Every rank calls this.

    It ends early, saved, after `training.stop_after_steps` steps or when a signal asks for it (`StopSignal`); it is
    finished early when validation does not improve any more (`training.early_stopping_patience`).
    """
    lock = RunLock(Path(config.run))
    with StopSignal() as stop_signal, closing(lock), deterministic(config.training.deterministic):
        training = build(config, ranks, stop_signal, lock)
        steps, start, validation = training.engine.steps, training.start, training.validation
        last = min(steps, start + (config.training.stop_after_steps or steps))
        last = start if validation.exhausted else last
        if start < last:
            on_first(ranks, set_results_aside, training.run_dir, start)
        step, stopped = take_steps(training, start, last)
        if stopped is None and (step >= steps or validation.exhausted):
            export(training, step)
            stopped, _ = training.health.check(step)  # a signal that came meanwhile would be lost
            if stopped is None:
                return Outcome(training.run_dir, step)
    if ranks.is_first:
        print(f"{stopped or 'stopped'} after step {step} of {steps}; the same command continues", flush=True)
    return Outcome(training.run_dir, step, stopped or "stop_after_steps")


def build(config: Config, ranks: Ranks, stop_signal: StopSignal, lock: RunLock) -> Training:
    """Open the data, build the encoders and the objective, claim the run folder, build the engine, restore its state.

    The folder is claimed once all files have been read, and its configuration is written once the state is restored:
    a start that fails before its first step is logged leaves the folder free, or as it was.
    """
    run_dir, asked = Path(config.run), config
    config = with_own_inputs(run_dir, asked)
    task, plan, objective = build_task(config, ranks)
    compare = partial(claim_clips, run_dir, config.dataset.shards, *task.training_clips())
    on_first(ranks, claim, run_dir, asked, lock, compare)
    on_first(ranks, keep_start, run_dir, config, task, objective.model)
    flops = step_flops(config, objective, ranks.world)
    frozen = on_first(ranks, store_frozen, run_dir, objective.model.frozen_state_dict())  # before a cast to bf16
    twin = copy_to_test(objective.model, config) if config.evaluation.every_steps else None
    steps = total_steps(config.training, len(plan.records))
    if ranks.is_first:
        print(describe(task, plan, config, objective, ranks, steps), flush=True)
    objective.model.compile_blocks(steps, compile_obstacle(config))
    engine = Engine(config, objective, ranks, steps)
    if config.model.text.release_frozen:
        stored = TensorFile(run_dir / "model" / "frozen.safetensors")
        if engine.stage != 3:  # which has shared them out among the ranks
            objective.model.release_text(stored)
        if twin is not None:
            twin.release_text(stored)
    validation = Validation(config, task, twin.bfloat16() if twin and engine.bf16 else twin, engine)
    checkpoints = Checkpoints(run_dir, engine, config, frozen or "")
    health = Health(ranks, stop_signal)
    start = checkpoints.restore()
    clips = micro_batch_size(config, ranks.world)
    objective.model.video.choose_recompute(
        (clips, config.dataset.clip.frames, 3, config.loader.crop, config.loader.crop)
    )
    validation.resume(checkpoints)
    on_first(ranks, write_start, run_dir, asked)
    return Training(config, run_dir, plan, engine, checkpoints, validation, health, flops, start)


def compile_obstacle(config: Config) -> str | None:
    """Why `model.video.compile=auto` compiles nothing in this run, or None."""
    if config.profile:
        return "profile=true tells the parts of a step apart"
    if config.deepspeed.get("zero_optimization", {}).get("stage") == 3:
        return "weights come and go within a block under deepspeed=zero3"
    return None


def build_task(config: Config, ranks: Ranks) -> tuple[Task, TrainPlan, ConceptObjective]:
    """Read all that a configuration names: the data, the encoders, the objective. Writes nothing."""
    micro_batch_size(config, ranks.world)
    require_trackers(config.training.trackers)
    seed_everything(config.seed)
    task = load_task(config)
    rehearse(config, load_test(config, task))  # what the test lacks is said now, and not after the last step
    records, labels = task.training_clips()
    plan = TrainPlan(
        records, labels, config.dataset.clip, config.loader, config.training.batch_size, config.seed,
        ranks.rank, ranks.world,
    )  # fmt: skip
    model = starting_model(config, Path(config.run)).to(ranks.device)
    if not any(model.trainable_parameters().values()):
        prompts = " or prompt_tokens" if config.model.video.tower == "vit" else ""
        raise ConfigError(
            f"nothing trains: raise model.video.trained_blocks{prompts}, or set model.text.train_projection=true"
        )
    if (rate := config.training.lr_new) is not None and next(model.video.new_parameters(), None) is None:
        raise ConfigError(
            f"training.lr_new={rate:g} is of layers over frames and prompts of the video side, and model.video.tower="
            f"{config.model.video.tower} has none as it is set; set it to null"
        )
    return task, plan, build_objective(config, model, task.classes.base, task.trees, task.classes.novel)


def starting_model(config: Config, run_dir: Path) -> DualEncoder:
    """The encoders that the run starts from: those of the weight files, or of another run (`init_from`).

    A run that goes on needs neither of them any more: it has its frozen weights, and its checkpoint has the others.
    """
    gone = [f"{key}={path}" for key, path in starting_weights(config).items() if not named_file(key, path).is_file()]
    if gone and has_inputs(run_dir) and CheckpointFolder(run_dir / "checkpoints", keep=1).complete():
        say_once(f"{', '.join(gone)} does not exist here: the run goes on with the weights that it holds")
        model = build_model(replace(config.model, init="random"), config.seed)
        for name in (FROZEN, START):
            load_tensors(model, TensorFile(run_dir / "model" / name))
        return model
    if not config.init_from:
        return build_model(config.model, config.seed, temperature=config.method.temperature)
    check_parent(config.init_from, run_dir)
    return build_model(config.model, config.seed, parent=resolve_path(config.init_from) / "model")


def keep_start(run_dir: Path, config: Config, task: Task, model: DualEncoder) -> None:
    """Keep what a run starts from: its inputs, and the weights that training will change."""
    if has_inputs(run_dir):
        return note_shards(run_dir, config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    digest = store_frozen(run_dir, trained, START) if trained else None
    keep_inputs(run_dir, config, {**describe_task(task), "start_sha256": digest, "licences": start_licences(config)})


def start_licences(config: Config) -> dict[str, str]:
    """Side -> licence of the weights that the run starts from; those of another run are that run's."""
    if config.init_from:
        return read_inputs(resolve_path(config.init_from))["licences"] or {}
    return {key.split(".")[1]: read_licence(named_file(key, path)) for key, path in starting_weights(config).items()}


def take_steps(training: Training, start: int, last: int) -> tuple[int, str | None]:
    """Steps `start` to `last`: fetch, forward, backward, step, log, save.

    Returns the steps done, of which the last is saved, and the signal's meaning when one ended them.
    """
    config, plan, engine, health = training.config, training.plan, training.engine, training.health
    checkpoints, ranks, parts = training.checkpoints, engine.ranks, config.training.accumulation
    model, objective = engine.module.model, engine.module
    meters = Meters.build(config, engine, training.flops)
    done, stopped = start, None
    model.train()
    with (
        closing(build_loader(config, ranks.device, model.frozen_part(config.loader))) as loader,
        closing(checkpoints),
        build_callbacks(training, start, meters) as callbacks,
    ):
        stream = loader.stream(micro_batches(plan, start, last, parts))
        for step in range(start, last):
            callbacks.on_step_begin(step)
            draw = objective.place(objective.sampler.draw(step))  # the same on every rank
            rates = engine.set_learning_rates(step)
            for micro in range(parts):
                callbacks.on_stage("data", step)
                batch = next(stream)  # decoded on the device, already normalised
                key = (config.seed, step, ranks.rank * parts + micro)
                batch = augment(batch, config.loader, len(objective.sampler.actions), key)
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
                    waits = checkpoints.due(step + 1) or callbacks.due(step + 1)
                    stopped, overdue = health.check(step, checkpoints.overdue(), waits)
                callbacks.on_stage("step", step)
                engine.step()
            health.note_gradients(step, engine.finite)
            if engine.skipped:
                raise health.explain_skipped(step)
            done = step + 1
            engine.average(done)
            end = StepEnd(done, done * plan.batch_size / len(plan.records), rates, loader.wait_s)
            callbacks.on_step_end(end)  # log, validate
            if end.save or overdue or stopped or checkpoints.due(done) or done == last:
                callbacks.on_stage("save", step)
                health.check(step, wait=True)
                checkpoints.save(done, callbacks.state(), end.best_step)  # written while training goes on
            if end.stop or stopped:
                break
        checkpoints.finish()
    on_first(ranks, write_summary, training.run_dir, start, done, meters.summary())
    return done, stopped


def build_callbacks(training: Training, start: int, meters: Meters) -> Callbacks:
    """Everything that listens to the loop. Garbage is collected last; on closing, the log outlives the watchdog.

    Validation comes before the log, which has a line of the step after which it ends the run, and after the profile.
    """
    config, engine, run_dir = training.config.training, training.engine, training.run_dir
    line = training.checkpoints.callbacks.get("log")
    sampler = engine.module.sampler if training.config.method.random_labels else None
    return Callbacks(
        [
            meters,
            Profiler(training.config, run_dir, engine.ranks, meters),
            training.validation,
            Monitor(run_dir, engine.ranks, start, engine.steps, config, meters, line, sampler),
            Watchdog(run_dir, engine.ranks, config),
            GarbageCollection(config.gc_every_steps),
        ]
    )


def export(training: Training, step: int) -> None:
    """Write the weights that the run is tested with, in fp32, for others too: the last, or the best. Collective.

    Which they are stands in the file's metadata, for `results.json`, which adds `evaluation.interpolate`.
    """
    engine, validation, settings = training.engine, training.validation, training.config.training
    ranks, best_step = engine.ranks, validation.best_step
    about = f"step {step}" if best_step is None else str(validation)
    if engine.averages and average_share(settings, best_step or step, engine.steps) != 1:
        kind = f"EMA {settings.ema_decay:g}" if settings.swa_start is None else f"SWA from {settings.swa_start:g} on"
        about += f", running average ({kind})"
    folder, frozen = training.run_dir / "model", training.checkpoints.frozen
    if best_step in (None, step):
        on_first(ranks, write_trained, folder, engine.weights(), about, frozen)
    else:
        part = "average" if engine.averages else "weights"
        on_first(ranks, write_best, folder, training.checkpoints.folder.at(best_step), part, about, frozen)
    if ranks.is_first:
        if step < engine.steps:
            print(f"ended early: the last {validation.since_best} validations were no better than the best", flush=True)
        if (share := training.config.evaluation.interpolate) != 1:
            about += f", at {share:g} of the way from before training (evaluation.interpolate)"
        print(f"weights that are tested and exported: {about}", flush=True)


def write_best(folder: Path, path: Path, part: str, about: str, frozen_sha256: str) -> None:
    """Write the weights of the best checkpoint. Where that is gone or damaged, those of a finished run stay.

    Raises `RunError` with the way out when they are not there, or not whole.
    """
    trained = folder / TRAINED
    try:
        weights = read(path).parts[part]
    except (OSError, RunError) as error:
        lost = f"the best checkpoint cannot be used: {error}"
        if not trained.is_file():
            raise RunError(f"{lost}; delete {path}, and the same command goes on without it") from error
        both = f"bring it or {path} back, or delete both, and the same command goes on without them"
        check_checksums(folder, [TRAINED], f"{lost}; {both}")
        if TensorFile(trained).metadata.get("weights") != about:
            raise RunError(f"{lost}, and {trained} holds other weights; {both}") from error
        print(f"{lost}; {trained}, which holds its weights, stays as it is", flush=True)
    else:
        write_trained(folder, weights, about, frozen_sha256)


def write_trained(folder: Path, weights: Mapping[str, Tensor], about: str, frozen_sha256: str) -> None:
    """Write `trained.safetensors`, and the checksums of what is in a run's `model` folder."""
    digest = save_safetensors(weights, folder / TRAINED, metadata={"weights": about})
    start = read_inputs(folder.parent)["start_sha256"]
    write_checksums(folder, {FROZEN: frozen_sha256, TRAINED: digest, **({START: start} if start else {})})


def micro_batches(plan: TrainPlan, start: int, end: int, parts: int) -> Iterator[list[ClipRequest]]:
    """This rank's micro-batches of steps `start` to `end`, `parts` a step, in order."""
    for step in range(start, end):
        requests = plan.requests(step)
        size = len(requests) // parts
        for first in range(0, len(requests), size):
            yield requests[first : first + size]


def describe(task: Task, plan: TrainPlan, config: Config, objective: ConceptObjective, ranks: Ranks, steps: int) -> str:
    """What is about to be trained, for the console, with what will keep its result from meaning much.

    To be called before DeepSpeed shares the weights out.
    """
    model, features = objective.model, objective.text_features
    trained = model.trainable_parameters()
    whole, video, text = (sum(p.numel() for p in those) for those in (model.parameters(), *trained.values()))
    precision = "bf16" if uses_bf16(config.training.precision, ranks.device) else "fp32"
    held_out = ""
    if task.validation:
        clips = len(task.validation_clips()[0])
        held_out = f", held out for validation: {clips} of {', '.join(sorted(task.validation))}"
        held_out += f", and {sum(map(len, task.held_out.values()))} words" if task.held_out else ""
    lines = [
        f"classes: {len(task.classes.base)} base, {len(task.classes.novel)} novel; "
        f"training clips: {len(plan.records)}{held_out}",
        f"parameters: {whole:,}, of which train {video:,} (video) and {text:,} (text)",
        f"phrases: {len(features)} encoded once ({features.memory_mib:.2f} MiB)",
        f"steps: {steps} of {plan.batch_size} clips ({plan.steps_per_epoch} an epoch) on {ranks.world} rank(s), "
        f"{precision} on {ranks.device}",
        *(f"warning: {text}" for text in run_warnings(task, plan, config.training, steps, ranks.world)),
    ]
    return "\n".join(lines)


def run_warnings(task: Task, plan: TrainPlan, settings: TrainingConfig, steps: int, world: int) -> list[str]:
    """A sentence for each thing that will keep a run's result from meaning much, with what to set."""
    clips, batch = len(plan.records), plan.batch_size
    trained = set(plan.labels)
    untrained = [str(action) for index, action in enumerate(task.classes.base) if index not in trained]
    found = [few_steps(settings, steps, batch / clips), early_decay(settings, steps)]
    if not task.is_tested():
        found.append(f"{NO_TEST}, so the evaluation at the end will score nothing")
    if batch > clips:
        parts = world * settings.accumulation
        fits = f"training.batch_size={clips // parts * parts}" if clips >= parts else f"ranks={clips} or less"
        found.append(f"training.batch_size={batch} exceeds the {clips} training clips: a step repeats some; set {fits}")
    if untrained:
        remedy = "hold fewer groups out by evaluation.validation_groups or evaluation.validation_share"
        if not task.validation:
            remedy = "see that dataset.left_out_groups and the training split leave some"
        found.append(
            f"{len(untrained)} of {len(task.classes.base)} base actions have no training clip "
            f"({shortened(untrained)}); {remedy}"
        )
    return [text for text in found if text]


def early_decay(settings: TrainingConfig, steps: int) -> str | None:
    """Whether the learning rate falls to half of its largest value within the first steps."""
    factors = [lr_factor(settings, step, steps) for step in range(min(steps, EARLY_STEPS + 1))]
    peak = factors.index(max(factors)) if factors else 0
    low = next((step for step, factor in enumerate(factors) if step > peak and factor < factors[peak] / 2), None)
    if low is None:
        return None
    return (
        f"the learning rate falls after {low} step{'s' * (low != 1)} already (training.schedule={settings.schedule}, "
        f"{steps} steps); set training.schedule=constant, or more steps"
    )
