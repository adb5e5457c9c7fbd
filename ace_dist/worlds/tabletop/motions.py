"""The motion programs of the tabletop world: how hand, object and tool move for each verb."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def rest(s: Array, **moving: Any) -> Pose:
    """An object at rest with the hand closed on it, but for the fields that a program moves."""
    zero, one = np.zeros_like(s), np.ones_like(s)
    still = dict.fromkeys(
        ("x", "y", "height", "angle", "gap", "fold", "flap", "hand_x", "hand_y", "tool_angle", "stream", "trail"), zero
    )
    return Pose(**still | {"sx": one, "sy": one, "grip": one} | moving)


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


def idle(s: Array, m: Manner) -> Pose:
    """An open hand that rests near the person and stirs a little: nothing is done. No verb of the world."""
    sway = 0.05 * np.sin(m.angle(s, 0.3))
    return rest(s, hand_x=-0.75 * m.away[0] + sway, hand_y=-0.75 * m.away[1] + sway, grip=np.zeros_like(s))


def lift(s: Array, m: Manner) -> Pose:
    """Up and away from the shadow, in a closed hand."""
    return carry(rest(s, height=0.75 * m.amplitude * m.progress(s)))


def put_down(s: Array, m: Manner) -> Pose:
    """Down onto the shadow; then the hand opens and draws back."""
    pose = carry(rest(s, height=0.75 * m.amplitude * (1.0 - m.progress(s))))
    return retreat(pose, s, m.delay + 0.6, m)


def drop(s: Array, m: Manner) -> Pose:
    """The hand opens high up; the object falls, bounces and tips over."""
    top = 0.75 * m.amplitude
    fallen = np.clip(s - m.delay - 0.25, 0.0, None)
    since_hit = fallen - np.sqrt(top / 14.0)
    bounce = np.clip(1.4 * since_hit - 14.0 * since_hit**2, 0.0, None)
    pose = carry(rest(s, height=np.full_like(s, top)))  # the hand stays where it let go
    pose.height = np.where(since_hit > 0, bounce, top - 14.0 * fallen**2)
    pose.angle = 0.8 * m.side * np.clip(fallen / 0.25, 0.0, 1.0)
    pose.grip = 1.0 - ease(s, m.delay + 0.1, m.delay + 0.25)
    return pose


def push(s: Array, m: Manner) -> Pose:
    """Away from the person, an open hand behind the object."""
    travel = 0.85 * m.amplitude * (m.progress(s) - 0.5)
    x, y = travel * m.away[0], travel * m.away[1]
    return rest(s, x=x, y=y, hand_x=x - 0.3 * m.away[0], hand_y=y - 0.3 * m.away[1], grip=np.zeros_like(s))


def pull(s: Array, m: Manner) -> Pose:
    """Towards the person, in a closed hand."""
    travel = 0.85 * m.amplitude * (0.5 - m.progress(s))
    return carry(rest(s, x=travel * m.away[0], y=travel * m.away[1]))


def spin(s: Array, m: Manner) -> Pose:
    """Turns about itself on the spot, a finger beside it."""
    angle = m.side * m.angle(s, 1.0)
    hand_x, hand_y = -0.35 * m.away[0] + 0.06 * np.cos(angle), -0.35 * m.away[1] + 0.06 * np.sin(angle)
    return rest(s, angle=angle, hand_x=hand_x, hand_y=hand_y, grip=np.full_like(s, 0.4))


def flip(s: Array, m: Manner) -> Pose:
    """Once over, its dark underside up in the end."""
    turn = np.pi * m.progress(s)
    height = 0.4 * m.amplitude * np.sin(turn)
    hand_x, hand_y = 0.12 * m.side * np.ones_like(s), height + 0.28 * np.cos(turn)
    return rest(s, sy=np.cos(turn), height=height, hand_x=hand_x, hand_y=hand_y)


def shake(s: Array, m: Manner) -> Pose:
    """To and fro with the hand, quickly, off the table."""
    wave = np.sin(m.angle(s, 1.7))
    height = 0.35 + 0.05 * np.cos(2 * m.angle(s, 1.7))
    return carry(rest(s, x=0.22 * m.amplitude * wave, height=height, angle=0.35 * wave))


def hammer(s: Array, m: Manner) -> Pose:
    """A hammer swings from the side; the object gives at each blow."""
    swing = np.abs(np.sin(0.5 * m.angle(s, 1.4)))
    return rest(
        s, tool="hammer", tool_angle=m.side * (0.1 + 1.3 * m.amplitude * swing), hand_x=np.full_like(s, 0.42 * m.side),
        hand_y=0.18 + 0.3 * swing, sy=np.where(swing < 0.3, 0.75, 1.0),
    )  # fmt: skip


def insert(s: Array, m: Manner) -> Pose:
    """Over to a socket and down into it, until the socket hides it."""
    over = ease(s, m.delay, m.delay + 0.35)
    down = ease(s, m.delay + 0.35, m.delay + 0.7)
    pose = carry(rest(s, fixture="socket", x=m.side * (-0.45 + 0.75 * over), height=0.45 * over - 0.62 * down))
    pose.hand_y = pose.hand_y + 0.22
    return pose


def pour(s: Array, m: Manner) -> Pose:
    """Held high and tilted; then drops stream down."""
    tilt = ease(s, m.delay, m.delay + 0.3)
    stream = np.where(tilt > 0.6, (3.0 * m.cycles * s) % 1.0 + 1e-3, 0.0)
    pose = carry(rest(s, height=np.full_like(s, 0.5), angle=-1.9 * m.side * m.amplitude * tilt, stream=stream))
    pose.hand_x = pose.hand_x - 0.25 * m.side
    return pose


def stir(s: Array, m: Manner) -> Pose:
    """A stick circles over the object, which stays."""
    turn = m.side * m.angle(s, 1.1)
    hand_x, hand_y = 0.22 * m.amplitude * np.cos(turn), 0.45 + 0.12 * m.amplitude * np.sin(turn)
    return rest(s, tool="stick", hand_x=hand_x, hand_y=hand_y, tool_angle=0.25 * np.cos(turn))


def press(s: Array, m: Manner) -> Pose:
    """A flat hand comes down and flattens the object."""
    squash = ease(s, m.delay + 0.3, m.delay + 0.65)
    hand_y = 0.6 * (1.0 - m.progress(s)) + 0.22 - 0.22 * squash
    return rest(s, sy=1.0 - 0.5 * squash, sx=1.0 + 0.2 * squash, hand_y=hand_y, grip=np.full_like(s, 0.2))


def squeeze(s: Array, m: Manner) -> Pose:
    """Two fingers narrow the object again and again."""
    hold = 0.5 - 0.5 * np.cos(m.angle(s, 0.8))
    return rest(
        s, fixture="pinch", sx=1.0 - 0.55 * m.amplitude * hold, sy=1.0 + 0.35 * m.amplitude * hold, grip=hold,
        height=np.full_like(s, 0.1),
    )  # fmt: skip


def tap(s: Array, m: Manner) -> Pose:
    """A finger touches the object again and again; nothing else moves."""
    hand_y = 0.2 + 0.25 * m.amplitude * np.abs(np.sin(0.5 * m.angle(s, 1.6)))
    return rest(s, tool="finger", hand_x=0.1 * m.side * np.ones_like(s), hand_y=hand_y, grip=np.full_like(s, 0.7))


def wipe(s: Array, m: Manner) -> Pose:
    """A cloth goes to and fro over the object."""
    hand_x = 0.38 * m.amplitude * np.sin(m.angle(s, 0.9))
    hand_y = 0.05 + 0.05 * np.cos(2 * m.angle(s, 0.9))
    return rest(s, tool="cloth", hand_x=hand_x, hand_y=hand_y, grip=np.full_like(s, 0.2))


def lid(s: Array, m: Manner, opened: Array) -> Pose:
    """Hand and lid move together: the hand holds the lid's free edge."""
    flap = 0.05 + 1.9 * opened
    hand_x, hand_y = m.side * (0.6 * np.cos(flap) - 0.3), 0.25 + 0.6 * np.sin(flap)
    return rest(s, fixture="lid", flap=flap, hand_x=hand_x, hand_y=hand_y)


def stack(s: Array, m: Manner) -> Pose:
    """Over in an arc onto a pile; then the hand draws back."""
    over = m.progress(s)
    height = 0.42 * ease(s, m.delay, m.delay + 0.3) + 0.3 * np.sin(np.pi * over)
    pose = carry(rest(s, fixture="pile", x=m.side * (-0.45 + 0.75 * over), height=height))
    return retreat(pose, s, m.delay + 0.65, m)


def cut(s: Array, m: Manner) -> Pose:
    """A knife saws down; the halves part."""
    saw = 0.12 * np.sin(m.angle(s, 1.5))
    hand_y = 0.6 - 0.35 * ease(s, m.delay, m.delay + 0.9) + saw
    return rest(s, tool="knife", tool_angle=saw, hand_y=hand_y, gap=0.3 * ease(s, m.delay + 0.25, m.delay + 0.8))


def fold(s: Array, m: Manner) -> Pose:
    """The right half comes over the left."""
    done = m.progress(s)
    hand_x, hand_y = m.side * 0.32 * np.cos(np.pi * done), 0.25 * np.sin(np.pi * done)
    return rest(s, fold=done, angle=np.full_like(s, 0.0 if m.side > 0 else np.pi), hand_x=hand_x, hand_y=hand_y)


def paint(s: Array, m: Manner) -> Pose:
    """A brush goes to and fro and leaves colour from the top down."""
    done = ease(s, m.delay, m.delay + 0.9)
    wave = np.sin(m.angle(s, 1.1))
    hand_x, hand_y = 0.25 * m.amplitude * wave + 0.15 * m.side, 0.5 - 0.4 * done
    return rest(s, tool="brush", trail=done, hand_x=hand_x, hand_y=hand_y, tool_angle=0.5 + 0.2 * wave)


def swing(s: Array, m: Manner) -> Pose:
    """A pendulum on a string below a still hand."""
    theta = 0.95 * m.amplitude * np.sin(m.angle(s, 0.8))
    height, hand_y = 0.65 - 0.7 * np.cos(theta), np.full_like(s, 0.65)
    return rest(s, fixture="string", x=0.7 * np.sin(theta), height=height, angle=theta, hand_y=hand_y)


def roll(s: Array, m: Manner) -> Pose:
    """Sideways while turning, let go by the hand that started it."""
    done = m.progress(s)
    x, hand_x = m.side * m.amplitude * 1.1 * (done - 0.5), m.side * m.amplitude * (0.25 * done - 0.85)
    return rest(s, x=x, angle=-m.side * 2.0 * np.pi * done, hand_x=hand_x, grip=np.zeros_like(s))


PROGRAMS: dict[str, Callable[[Array, Manner], Pose]] = {
    "lift": lift, "put down": put_down, "drop": drop, "push": push, "pull": pull, "spin": spin, "flip": flip,
    "shake": shake, "hammer": hammer, "insert": insert, "pour": pour, "stir": stir, "press": press, "squeeze": squeeze,
    "tap": tap, "wipe": wipe, "open": lambda s, m: lid(s, m, m.progress(s)),
    "close": lambda s, m: lid(s, m, 1.0 - m.progress(s)), "stack": stack, "cut": cut, "fold": fold, "paint": paint,
    "swing": swing, "roll": roll,
}  # fmt: skip
