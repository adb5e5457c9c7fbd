"""Learning-rate factors as pure functions of the step, so that a resumed run needs no scheduler state."""

import math
from fractions import Fraction

from ace_dist.config import TrainingConfig


def total_steps(settings: TrainingConfig, clips: int) -> int:
    """Optimizer steps of a run: enough to see `epochs * clips` clips, unless `max_steps` says otherwise."""
    steps = math.ceil(exact(settings.epochs) * clips / settings.batch_size)
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def exact(share: float) -> Fraction:
    """The decimal number that was written: 0.29 * 100 is less than 29 in floating point."""
    return Fraction(str(share))


def average_start(swa_start: float, steps: int) -> int:
    """After how many of `steps` steps the average over the last ones begins anew."""
    return math.floor(exact(swa_start) * steps)


def average_share(settings: TrainingConfig, done: int, steps: int) -> float | None:
    """How far the average of the weights moves to those after `done` of `steps` steps, in (0, 1]; None: there is none.

    An exponential one (EMA: Polyak and Juditsky, 1992) by a constant share. One over the last steps alone (SWA:
    Izmailov et al., UAI 2018) is the weights themselves until it starts, then the mean of those after every step since.
    """
    if settings.swa_start is not None:
        return 1 / max(1, done - average_start(settings.swa_start, steps))
    return 1 - settings.ema_decay if settings.ema_decay else None


def lr_factor(settings: TrainingConfig, step: int, steps: int) -> float:
    """What the base rates are multiplied by at `step` of `steps`, in [0, 1].

    `steps`: times `gamma` at each milestone, a share of the run (ProcedureVRL's fine-tuning: at 11/15 and 14/15);
    `cosine`: half a cosine to 0; `constant`. A linear warm-up takes the first `warmup` share of the run.
    """
    progress = step / max(1, steps)
    ramp = min(1.0, (step + 1) / (settings.warmup * steps)) if settings.warmup else 1.0
    if settings.schedule == "cosine":
        return ramp * 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "steps":
        return ramp * settings.gamma ** sum(progress >= milestone for milestone in settings.milestones)
    return ramp
