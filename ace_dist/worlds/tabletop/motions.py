"""Owns the motion programs of the tabletop world: how hand, object and tool move for each verb."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Manner:
    """How one clip performs its verb: what varies between clips and says nothing about the verb.

    Lengths are in half image widths, `cycles` in repetitions per segment, `phase` in [0, 1), `away` is the unit vector
    from the person towards the table, `side` is +1 or -1 and mirrors every sideways motion.
    """

    amplitude: float
    cycles: float
    phase: float
    side: float
    away: tuple[float, float]
    delay: float

    def angle(self, s: Array, rate: float) -> Array:
        """Phase angle in radians of a cyclic motion that repeats `rate * cycles` times while s runs from 0 to 1."""
        return np.asarray(2.0 * np.pi * (rate * self.cycles * s + self.phase))

    def progress(self, s: Array) -> Array:
        """Eased progress 0 -> 1 of a one-way motion that starts after the clip's own delay."""
        return ease(s, self.delay, self.delay + 0.65)


@dataclass
class Pose:
    """What the renderer draws: every field a float array [N], one value a frame, unless it says otherwise.

    `x, y` is the object's place on the table and `height` lifts it off (its shadow stays); `angle` in radians; `sx, sy`
    stretch it in its own frame; `gap` parts its halves; `fold` 0 -> 1 lays its right half over its left; `flap` in
    radians opens its lid; `hand_x, hand_y` is the palm; `grip` 0 open, 1 closed; `stream` and `trail` 0 -> 1 show
    poured drops and paint; `tool` names what the hand holds and `fixture` what else stands on the table
    ("" for nothing), for the whole clip.
    """

    x: Array
    y: Array
    height: Array
    angle: Array
    sx: Array
    sy: Array
    gap: Array
    fold: Array
    flap: Array
    hand_x: Array
    hand_y: Array
    grip: Array
    tool_angle: Array
    stream: Array
    trail: Array
    tool: str = ""
    fixture: str = ""


def ease(s: Array, start: float, stop: float) -> Array:
    """Smooth step from 0 (s <= start) to 1 (s >= stop)."""
    t = np.clip((s - start) / (stop - start), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


def rest(s: Array) -> Pose:
    """An object at rest with the hand closed on it: what every program starts from."""
    zero = np.zeros_like(s)
    one = np.ones_like(s)
    return Pose(
        x=zero, y=zero, height=zero, angle=zero, sx=one, sy=one, gap=zero, fold=zero, flap=zero,
        hand_x=zero, hand_y=zero, grip=one, tool_angle=zero, stream=zero, trail=zero,
    )  # fmt: skip


def carry(pose: Pose) -> Pose:
    """The hand goes where the object goes."""
    pose.hand_x, pose.hand_y = pose.x, pose.y + pose.height
    return pose


def retreat(pose: Pose, s: Array, start: float, m: Manner) -> Pose:
    """From s = start on, the hand opens and draws back towards the person."""
    back = ease(s, start, start + 0.25)
    pose.hand_x = pose.hand_x - 0.4 * m.away[0] * back
    pose.hand_y = pose.hand_y - 0.4 * m.away[1] * back
    pose.grip = pose.grip * (1.0 - back)
    return pose


def lift(s: Array, m: Manner) -> Pose:
    """Up and away from the shadow, in a closed hand."""
    pose = rest(s)
    pose.height = 0.75 * m.amplitude * m.progress(s)
    return carry(pose)


def put_down(s: Array, m: Manner) -> Pose:
    """Down onto the shadow; then the hand opens and draws back."""
    pose = rest(s)
    pose.height = 0.75 * m.amplitude * (1.0 - m.progress(s))
    return retreat(carry(pose), s, m.delay + 0.6, m)


def drop(s: Array, m: Manner) -> Pose:
    """The hand opens high up; the object falls, bounces and tips over."""
    pose = rest(s)
    top = 0.75 * m.amplitude
    pose.height = np.full_like(s, top)
    fallen = np.clip(s - m.delay - 0.25, 0.0, None)
    height = top - 14.0 * fallen**2
    since_hit = fallen - np.sqrt(top / 14.0)
    bounce = np.clip(1.4 * since_hit - 14.0 * since_hit**2, 0.0, None)
    pose = carry(pose)
    pose.height = np.where(since_hit > 0, bounce, height)
    pose.angle = 0.8 * m.side * np.clip(fallen / 0.25, 0.0, 1.0)
    pose.grip = 1.0 - ease(s, m.delay + 0.1, m.delay + 0.25)
    return pose


def push(s: Array, m: Manner) -> Pose:
    """Away from the person, an open hand behind the object."""
    pose = rest(s)
    travel = 0.85 * m.amplitude * (m.progress(s) - 0.5)
    pose.x, pose.y = travel * m.away[0], travel * m.away[1]
    pose.hand_x, pose.hand_y = pose.x - 0.3 * m.away[0], pose.y - 0.3 * m.away[1]
    pose.grip = np.zeros_like(s)
    return pose


def pull(s: Array, m: Manner) -> Pose:
    """Towards the person, in a closed hand."""
    pose = rest(s)
    travel = 0.85 * m.amplitude * (0.5 - m.progress(s))
    pose.x, pose.y = travel * m.away[0], travel * m.away[1]
    return carry(pose)


def spin(s: Array, m: Manner) -> Pose:
    """Turns about itself on the spot, a finger beside it."""
    pose = rest(s)
    pose.angle = m.side * m.angle(s, 1.0)
    pose.hand_x = -0.35 * m.away[0] + 0.06 * np.cos(pose.angle)
    pose.hand_y = -0.35 * m.away[1] + 0.06 * np.sin(pose.angle)
    pose.grip = np.full_like(s, 0.4)
    return pose


def flip(s: Array, m: Manner) -> Pose:
    """Once over, its dark underside up in the end."""
    pose = rest(s)
    turn = np.pi * m.progress(s)
    pose.sy = np.cos(turn)
    pose.height = 0.4 * m.amplitude * np.sin(turn)
    pose.hand_x = 0.12 * m.side * np.ones_like(s)
    pose.hand_y = pose.height + 0.28 * np.cos(turn)
    return pose


def shake(s: Array, m: Manner) -> Pose:
    """To and fro with the hand, quickly, off the table."""
    pose = rest(s)
    wave = np.sin(m.angle(s, 1.7))
    pose.x = 0.22 * m.amplitude * wave
    pose.height = 0.35 + 0.05 * np.cos(2 * m.angle(s, 1.7))
    pose.angle = 0.35 * wave
    return carry(pose)


def hammer(s: Array, m: Manner) -> Pose:
    """A hammer swings from the side; the object gives at each blow."""
    pose = rest(s)
    swing = np.abs(np.sin(0.5 * m.angle(s, 1.4)))
    pose.tool = "hammer"
    pose.tool_angle = m.side * (0.1 + 1.3 * m.amplitude * swing)
    pose.hand_x = np.full_like(s, 0.42 * m.side)
    pose.hand_y = 0.18 + 0.3 * swing
    pose.sy = np.where(swing < 0.3, 0.75, 1.0)
    return pose


def insert(s: Array, m: Manner) -> Pose:
    """Over to a socket and down into it, until the socket hides it."""
    pose = rest(s)
    over = ease(s, m.delay, m.delay + 0.35)
    down = ease(s, m.delay + 0.35, m.delay + 0.7)
    pose.fixture = "socket"
    pose.x = m.side * (-0.45 + 0.75 * over)
    pose.height = 0.45 * over - 0.62 * down
    pose = carry(pose)
    pose.hand_y = pose.hand_y + 0.22
    return pose


def pour(s: Array, m: Manner) -> Pose:
    """Held high and tilted; then drops stream down."""
    pose = rest(s)
    tilt = ease(s, m.delay, m.delay + 0.3)
    pose.height = np.full_like(s, 0.5)
    pose.angle = -1.9 * m.side * m.amplitude * tilt
    pose.stream = np.where(tilt > 0.6, (3.0 * m.cycles * s) % 1.0 + 1e-3, 0.0)
    pose = carry(pose)
    pose.hand_x = pose.hand_x - 0.25 * m.side
    return pose


def stir(s: Array, m: Manner) -> Pose:
    """A stick circles over the object, which stays."""
    pose = rest(s)
    turn = m.side * m.angle(s, 1.1)
    pose.tool = "stick"
    pose.hand_x = 0.22 * m.amplitude * np.cos(turn)
    pose.hand_y = 0.45 + 0.12 * m.amplitude * np.sin(turn)
    pose.tool_angle = 0.25 * np.cos(turn)
    return pose


def press(s: Array, m: Manner) -> Pose:
    """A flat hand comes down and flattens the object."""
    pose = rest(s)
    down = m.progress(s)
    squash = ease(s, m.delay + 0.3, m.delay + 0.65)
    pose.sy = 1.0 - 0.5 * squash
    pose.sx = 1.0 + 0.2 * squash
    pose.hand_y = 0.6 * (1.0 - down) + 0.22 - 0.22 * squash
    pose.grip = np.full_like(s, 0.2)
    return pose


def squeeze(s: Array, m: Manner) -> Pose:
    """Two fingers narrow the object again and again."""
    pose = rest(s)
    hold = 0.5 - 0.5 * np.cos(m.angle(s, 0.8))
    pose.sx = 1.0 - 0.55 * m.amplitude * hold
    pose.sy = 1.0 + 0.35 * m.amplitude * hold
    pose.grip = hold
    pose.height = np.full_like(s, 0.1)
    pose.fixture = "pinch"
    return pose


def tap(s: Array, m: Manner) -> Pose:
    """A finger touches the object again and again; nothing else moves."""
    pose = rest(s)
    bounce = np.abs(np.sin(0.5 * m.angle(s, 1.6)))
    pose.hand_y = 0.2 + 0.25 * m.amplitude * bounce
    pose.hand_x = 0.1 * m.side * np.ones_like(s)
    pose.grip = np.full_like(s, 0.7)
    pose.tool = "finger"
    return pose


def wipe(s: Array, m: Manner) -> Pose:
    """A cloth goes to and fro over the object."""
    pose = rest(s)
    wave = np.sin(m.angle(s, 0.9))
    pose.tool = "cloth"
    pose.hand_x = 0.38 * m.amplitude * wave
    pose.hand_y = 0.05 + 0.05 * np.cos(2 * m.angle(s, 0.9))
    pose.grip = np.full_like(s, 0.2)
    return pose


def lid(s: Array, m: Manner, opened: Array) -> Pose:
    """Hand and lid move together: the hand holds the lid's free edge."""
    pose = rest(s)
    pose.flap = 0.05 + 1.9 * opened
    pose.hand_x = m.side * (0.6 * np.cos(pose.flap) - 0.3)
    pose.hand_y = 0.25 + 0.6 * np.sin(pose.flap)
    pose.fixture = "lid"
    return pose


def open_lid(s: Array, m: Manner) -> Pose:
    """The lid swings up about its hinge."""
    return lid(s, m, m.progress(s))


def close_lid(s: Array, m: Manner) -> Pose:
    """The lid swings down onto the object."""
    return lid(s, m, 1.0 - m.progress(s))


def stack(s: Array, m: Manner) -> Pose:
    """Over in an arc onto a pile; then the hand draws back."""
    pose = rest(s)
    over = m.progress(s)
    pose.fixture = "pile"
    pose.x = m.side * (-0.45 + 0.75 * over)
    pose.height = 0.42 * ease(s, m.delay, m.delay + 0.3) + 0.3 * np.sin(np.pi * over)
    return retreat(carry(pose), s, m.delay + 0.65, m)


def cut(s: Array, m: Manner) -> Pose:
    """A knife saws down; the halves part."""
    pose = rest(s)
    done = ease(s, m.delay, m.delay + 0.9)
    pose.tool = "knife"
    pose.tool_angle = 0.12 * np.sin(m.angle(s, 1.5))
    pose.hand_y = 0.6 - 0.35 * done + 0.12 * np.sin(m.angle(s, 1.5))
    pose.gap = 0.3 * ease(s, m.delay + 0.25, m.delay + 0.8)
    return pose


def fold(s: Array, m: Manner) -> Pose:
    """The right half comes over the left."""
    pose = rest(s)
    done = m.progress(s)
    pose.fold = done
    pose.angle = np.full_like(s, 0.0 if m.side > 0 else np.pi)
    pose.hand_x = m.side * 0.32 * np.cos(np.pi * done)
    pose.hand_y = 0.25 * np.sin(np.pi * done)
    return pose


def paint(s: Array, m: Manner) -> Pose:
    """A brush goes to and fro and leaves colour from the top down."""
    pose = rest(s)
    done = ease(s, m.delay, m.delay + 0.9)
    wave = np.sin(m.angle(s, 1.1))
    pose.tool = "brush"
    pose.trail = done
    pose.hand_x = 0.25 * m.amplitude * wave + 0.15 * m.side
    pose.hand_y = 0.5 - 0.4 * done
    pose.tool_angle = 0.5 + 0.2 * wave
    return pose


def swing(s: Array, m: Manner) -> Pose:
    """A pendulum on a string below a still hand."""
    pose = rest(s)
    theta = 0.95 * m.amplitude * np.sin(m.angle(s, 0.8))
    pose.fixture = "string"
    pose.x = 0.7 * np.sin(theta)
    pose.height = 0.65 - 0.7 * np.cos(theta)
    pose.angle = theta
    pose.hand_x = np.zeros_like(s)
    pose.hand_y = np.full_like(s, 0.65)
    return pose


def roll(s: Array, m: Manner) -> Pose:
    """Sideways while turning, let go by the hand that started it."""
    pose = rest(s)
    done = m.progress(s)
    pose.x = m.side * m.amplitude * 1.1 * (done - 0.5)
    pose.angle = -m.side * 2.0 * np.pi * done
    pose.hand_x = m.side * m.amplitude * (0.25 * done - 0.85)
    pose.hand_y = np.zeros_like(s)
    pose.grip = np.zeros_like(s)
    return pose


PROGRAMS: dict[str, Callable[[Array, Manner], Pose]] = {
    "lift": lift, "put down": put_down, "drop": drop, "push": push, "pull": pull, "spin": spin, "flip": flip,
    "shake": shake, "hammer": hammer, "insert": insert, "pour": pour, "stir": stir, "press": press, "squeeze": squeeze,
    "tap": tap, "wipe": wipe, "open": open_lid, "close": close_lid, "stack": stack, "cut": cut, "fold": fold,
    "paint": paint, "swing": swing, "roll": roll,
}  # fmt: skip
