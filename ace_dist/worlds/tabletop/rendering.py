"""Draws tabletop clips: poses and styles in, uint8 frames out, with numpy and PIL alone."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ace_dist.worlds.tabletop.motions import PROGRAMS, idle
from ace_dist.worlds.tabletop.world import ClipStyle, Colour, mix

Array = NDArray[np.float64]
Frames = NDArray[np.uint8]
Part = tuple[Array, float]  # a convex polygon [K, 2] in object units (the object fills about -0.5..0.5) and its shade

OVERSAMPLE = 2  # frames are drawn at twice their size and averaged down: cheap anti-aliasing
MARGIN = 0.06  # the canvas exceeds the frame by this share a side, so that camera jitter shows no border

OBJECT_COLOURS: dict[str, Colour] = {
    "block": (205, 55, 45), "pin": (235, 200, 50), "plate": (225, 230, 235), "cup": (50, 95, 205),
    "ring": (150, 60, 175), "box": (225, 130, 35), "wheel": (55, 55, 60), "cone": (45, 160, 75),
}  # fmt: skip


def _rect(x0: float, y0: float, x1: float, y1: float) -> Array:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def _ellipse(rx: float, ry: float, cx: float = 0.0, cy: float = 0.0, corners: int = 14) -> Array:
    a = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    return np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], axis=1)


def _bar(start: Array, stop: Array, width: float) -> Array:
    """A straight bar [4, 2] from `start` to `stop`."""
    along = stop - start
    normal = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6) * (width / 2)
    return np.stack([start + normal, stop + normal, stop - normal, start - normal])


MARK = (_ellipse(0.07, 0.07, 0.24, 0.22, 8), 0.3)
CUP = [(-0.26, -0.42), (0.26, -0.42), (0.36, 0.42), (-0.36, 0.42)]
CONE = [(-0.46, -0.42), (0.46, -0.42), (0.0, 0.52)]
CONE_BAND = [(-0.29, -0.06), (0.29, -0.06), (0.18, 0.16), (-0.18, 0.16)]
# Each object carries a mark off its centre, so that its turning shows.
OBJECT_PARTS: dict[str, tuple[Part, ...]] = {
    "block": ((_rect(-0.42, -0.42, 0.42, 0.42), 1.0), (_rect(-0.42, 0.18, 0.42, 0.42), 1.35), MARK),
    "pin": ((_rect(-0.11, -0.5, 0.11, 0.25), 1.0), (_ellipse(0.2, 0.2, 0.0, 0.34), 0.8),
            (_rect(-0.11, -0.5, 0.11, -0.38), 0.4)),
    "plate": ((_ellipse(0.6, 0.34), 1.0), (_ellipse(0.38, 0.2), 0.8), (_ellipse(0.08, 0.06, 0.38, 0.14, 8), 0.35)),
    "cup": ((_rect(0.25, -0.18, 0.52, 0.2), 0.75), (np.array(CUP), 1.0), (_ellipse(0.36, 0.09, 0.0, 0.4), 0.5)),
    "ring": ((_ellipse(0.47, 0.47), 1.0), (_ellipse(0.25, 0.25), 0.25), (_ellipse(0.1, 0.1, 0.32, 0.16, 8), 1.6)),
    "box": ((_rect(-0.58, -0.34, 0.58, 0.34), 1.0), (_rect(-0.08, -0.34, 0.08, 0.34), 1.5),
            (_rect(-0.58, 0.22, 0.58, 0.34), 0.7)),
    "wheel": ((_ellipse(0.46, 0.46), 1.0), (_ellipse(0.3, 0.3), 3.2), (_rect(-0.3, -0.05, 0.3, 0.05), 1.0),
              (_rect(0.0, -0.05, 0.1, 0.3), 1.0)),
    "cone": ((np.array(CONE), 1.0), (np.array(CONE_BAND), 1.6)),
}  # fmt: skip


def _half(polygon: Array, sign: float) -> Array:
    """The part of a convex polygon with sign * x >= 0 (Sutherland-Hodgman); may be empty."""
    corners: list[Array] = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        inside_a, inside_b = sign * a[0] >= 0, sign * b[0] >= 0
        if inside_a:
            corners.append(a)
        if inside_a != inside_b:
            corners.append(a + (b - a) * (a[0] / (a[0] - b[0])))
    return np.array(corners) if len(corners) >= 3 else np.zeros((0, 2))


@cache
def object_halves(name: str) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """The object's left and right half, for verbs that cut or fold it."""
    left, right = (
        tuple((half, shade) for polygon, shade in OBJECT_PARTS[name] if len(half := _half(polygon, sign)))
        for sign in (-1.0, 1.0)
    )
    return left, right


class Painter:
    """Draws polygons given in scene units (x right, y up, the object's home at the origin) on one frame."""

    def __init__(self, image: Image.Image, style: ClipStyle) -> None:
        half = image.width / (1 + 2 * MARGIN) / 2
        cos, sin = np.cos(style.roll) * style.zoom * half, np.sin(style.roll) * style.zoom * half
        self.matrix = np.array([[cos, -sin], [-sin, -cos]])  # y points down in the image
        self.origin = self.matrix @ np.array(style.home) + image.width / 2
        self.draw = ImageDraw.Draw(image)
        self.style, self.gain = style, [style.light * hue for hue in style.hue]

    def colour(self, colour: Colour, shade: float = 1.0) -> tuple[int, int, int]:
        """The colour under this clip's light. The second domain's camera shows false colours, washed to a pale grey.

        With true colours the pretrained towers still told many objects there, and were not near chance.
        """
        colour = mix(colour, (255.0 - colour[2], 255.0 - colour[0], 255.0 - colour[1]), self.style.shift)
        grey = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
        pale = 0.6 * grey + 70.0
        r, g, b = (min(255, int((c * shade + (pale * shade - c * shade) * self.style.wash) * k))
                   for c, k in zip(colour, self.gain, strict=True))  # fmt: skip
        return r, g, b

    def polygon(self, points: Array, colour: Colour, shade: float = 1.0) -> None:
        self.fill(points, self.colour(colour, shade))

    def fill(self, points: Array, colour: tuple[int, ...]) -> None:
        """A polygon [K, 2] in scene units in just this colour."""
        self.draw.polygon((points @ self.matrix.T + self.origin).ravel().tolist(), fill=colour)


def _background(style: ClipStyle, width: int) -> Image.Image:
    """Table and clutter: wood with round crumbs in the narrated domain, a steel bench with parts in the second."""
    rng = np.random.default_rng(style.paint_seed)
    wood: Colour = (rng.uniform(185, 215), rng.uniform(155, 185), rng.uniform(120, 150))
    steel: Colour = (rng.uniform(95, 150), rng.uniform(110, 160), rng.uniform(120, 170))
    table = mix(wood, steel, style.shift)
    image = Image.new("RGB", (width, width))
    painter = Painter(image, style)
    image.paste(painter.colour(table), (0, 0, width, width))
    for y in np.arange(-2.4, 2.4, rng.uniform(0.3, 0.6)):
        painter.polygon(_rect(-2.5, y, 2.5, y + rng.uniform(0.05, 0.25)), table, rng.uniform(0.95, 1.04))
    for _ in range(rng.integers(1, 5)):
        turn, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.04, 0.1)
        place = rng.uniform(0.75, 1.3) * np.array([np.cos(turn), np.sin(turn)])
        colour: Colour = (rng.uniform(40, 230), rng.uniform(40, 230), rng.uniform(40, 230))
        if rng.uniform() < style.shift:
            turn = rng.uniform(0, np.pi)
            stop = place + 3 * size * np.array([np.cos(turn), np.sin(turn)])
            painter.polygon(_bar(place, stop, 0.07), colour, 0.7)
        else:
            painter.polygon(_ellipse(size, size, place[0], place[1], 10), colour)
    return image


class Scene:
    """One clip: its background, poses and colours, ready to draw frame by frame. Without a verb an empty table."""

    def __init__(self, verb: str, name: str, style: ClipStyle, times: Array, size: int, motion_noise: float) -> None:
        self.name, self.style, self.size = name, style, size
        begin, end = style.segment
        self.pose = (PROGRAMS[verb] if verb else idle)(np.clip((times - begin) / (end - begin), 0.0, 1.0), style.manner)
        rng = np.random.default_rng([style.paint_seed, 1])
        self.wobble = _wobble(rng, times) * motion_noise
        self.camera = _wobble(rng, times) * style.jitter * OVERSAMPLE
        self.colour = OBJECT_COLOURS[name] if name else (0.0, 0.0, 0.0)
        self.width = round(size * OVERSAMPLE * (1 + 2 * MARGIN))
        self.table = _background(style, self.width)
        self.grain = rng.normal(0.0, style.grain, (4, size, size, 1))
        # By time, so that a window of a clip equals its part of the whole.
        self.grain_index = np.floor(times * 25.0).astype(int) % 4

    def frame(self, i: int) -> Frames:
        """Frame i, uint8 [size, size, 3]: crop by the camera's jitter, average down, add the sensor's grain."""
        image = self.table.copy()
        painter = Painter(image, self.style)
        painter.origin = painter.origin + painter.matrix @ self.wobble[i]
        if self.name:
            self._draw_shadow(painter, i)
            self._draw_fixture(painter, i, front=False)
            self._draw_object(painter, i)
            self._draw_fixture(painter, i, front=True)
            self._draw_tool(painter, i)
        self._draw_hand(painter, i)
        inner = self.size * OVERSAMPLE
        slack = self.width - inner
        x, y = (int(np.clip(round(slack / 2 + d), 0, slack)) for d in self.camera[i])
        small = image.crop((x, y, x + inner, y + inner)).reduce(OVERSAMPLE)
        noisy = np.asarray(small, dtype=np.float64) + self.grain[self.grain_index[i]]
        return np.asarray(np.clip(noisy, 0, 255), dtype=np.uint8)

    def _draw_shadow(self, painter: Painter, i: int) -> None:
        """On the table, smaller the higher the object is lifted."""
        p, size = self.pose, self.style.object_size
        table = self.table.getpixel((2, 2))
        assert isinstance(table, tuple)
        radius = size * (0.5 - 0.12 * float(np.clip(p.height[i], 0, 1)))
        shadow = _ellipse(radius, 0.4 * radius, p.x[i] + 0.05, p.y[i] - 0.45 * size)
        painter.fill(shadow, tuple(int(0.62 * channel) for channel in table))

    def _place(self, points: Array, i: int) -> Array:
        """Object units to scene units."""
        p, style = self.pose, self.style
        angle = p.angle[i] + style.object_tilt
        cos, sin = np.cos(angle), np.sin(angle)
        scaled = points * np.array([p.sx[i], p.sy[i]]) * style.object_size
        return np.asarray(scaled @ np.array([[cos, sin], [-sin, cos]]) + np.array([p.x[i], p.y[i] + p.height[i]]))

    def _draw_object(self, painter: Painter, i: int) -> None:
        p = self.pose
        under = 0.55 if p.sy[i] < 0 else 1.0
        if p.gap[i] == 0.0 and p.fold[i] == 0.0:
            for polygon, shade in OBJECT_PARTS[self.name]:
                painter.polygon(self._place(polygon, i), self.colour, shade * under)
            if (painted := p.trail[i]) > 0.0:
                painter.polygon(self._place(_rect(-0.34, 0.42 - 0.84 * painted, 0.34, 0.42), i), (240, 120, 170))
            return
        left, right = object_halves(self.name)
        over, apart = 1.0 - 2.0 * p.fold[i], np.array([p.gap[i], 0.0])
        for polygon, shade in left:
            painter.polygon(self._place(polygon - apart, i), self.colour, shade)
        for polygon, shade in right:
            points = polygon * np.array([over, 1.0]) + apart
            painter.polygon(self._place(points, i), self.colour, shade * (1.0 if over > 0 else 0.6))

    def _draw_fixture(self, painter: Painter, i: int, front: bool) -> None:
        p, side, size = self.pose, self.style.manner.side, self.style.object_size
        grey: Colour = (90, 85, 80)
        if p.fixture == "socket":
            shape = _rect(-0.32, -0.6, 0.32, -0.12) if front else _ellipse(0.32, 0.12, 0.0, -0.12)
            painter.polygon(shape + np.array([0.3 * side, 0.0]), grey, 1.0 if front else 0.3)
        elif p.fixture == "pile" and not front:
            for k in range(2):
                layer = _rect(-0.24, -0.36 + 0.27 * k, 0.24, -0.1 + 0.27 * k)
                painter.polygon(layer + np.array([0.3 * side, 0]), grey, 1 + k)
        elif p.fixture == "lid" and front:
            hinge = np.array([-0.3 * side, 0.45 * size])
            tip = hinge + 0.62 * np.array([side * np.cos(p.flap[i]), np.sin(p.flap[i])])
            painter.polygon(_bar(hinge, tip, 0.12), self.colour, 0.55)
        elif p.fixture == "string" and not front:
            hand = np.array([p.hand_x[i], p.hand_y[i]])
            painter.polygon(_bar(hand, np.array([p.x[i], p.y[i] + p.height[i]]), 0.04), (30, 30, 30))
        elif p.fixture == "pinch" and front:
            reach = 0.5 * p.sx[i] * size
            for sign in (-1.0, 1.0):
                centre = np.array([sign * (reach + 0.05), p.height[i]])
                painter.polygon(_bar(centre, centre + np.array([0.0, 0.3]), 0.12), self.style.person.skin, 0.9)

    def _draw_tool(self, painter: Painter, i: int) -> None:
        p, side = self.pose, self.style.manner.side
        hand, angle = np.array([p.hand_x[i], p.hand_y[i]]), p.tool_angle[i]
        if p.tool == "hammer":
            head = hand + 0.48 * np.array([-side * np.cos(angle), np.sin(angle) * side])
            painter.polygon(_bar(hand, head, 0.07), (120, 80, 40))
            across = 0.16 * np.array([np.sin(angle) * side, side * side * np.cos(angle)])
            painter.polygon(_bar(head - across, head + across, 0.16), (70, 70, 80))
        elif p.tool == "stick":
            tip = np.array([0.5 * p.hand_x[i], 0.02 + 0.5 * (p.hand_y[i] - 0.45)])
            painter.polygon(_bar(hand, tip, 0.07), (200, 170, 120))
        elif p.tool == "finger":
            painter.polygon(_bar(hand, hand - np.array([0.08 * side, 0.22]), 0.08), self.style.person.skin, 0.9)
        elif p.tool == "cloth":
            painter.polygon(_ellipse(0.3, 0.18, hand[0], hand[1] - 0.04, 8), (245, 240, 225))
        elif p.tool == "knife":
            tip = hand + np.array([np.sin(angle) * 0.4, -0.5])
            painter.polygon(_bar(hand, tip, 0.1), (215, 220, 225))
        elif p.tool == "brush":
            tip = hand + 0.3 * np.array([-np.sin(angle), -np.cos(angle)])
            painter.polygon(_bar(hand, tip, 0.07), (90, 60, 40))
            painter.polygon(_ellipse(0.07, 0.07, tip[0], tip[1], 8), (240, 120, 170))
        if p.stream[i] > 0.0:
            for k in range(4):
                fall = (p.stream[i] + k) / 4.0
                painter.polygon(_ellipse(0.05, 0.07, 0.34 * side, 0.45 - 0.85 * fall, 8), (120, 190, 240))

    def _draw_hand(self, painter: Painter, i: int) -> None:
        p, person = self.pose, self.style.person
        away = np.array(self.style.manner.away)
        across = np.array([-away[1], away[0]])
        palm = np.array([p.hand_x[i], p.hand_y[i]]) - 0.1 * away
        painter.polygon(_bar(palm - 3.0 * away, palm - 0.12 * away, 0.2), person.sleeve)
        painter.polygon(_ellipse(0.14, 0.14, palm[0], palm[1], 10), person.skin)
        reach = 0.26 - 0.12 * p.grip[i]
        for k, spread in enumerate((-1.0, -0.33, 0.33, 1.0)):
            root = palm + 0.1 * spread * across
            tip = root + reach * (away + (1.0 - p.grip[i]) * 0.45 * spread * across)
            painter.polygon(_bar(root, tip, 0.075), person.skin, 0.86 + 0.05 * k)


def _wobble(rng: np.random.Generator, times: Array) -> Array:
    """Smooth noise [N, 2] of about unit size: two slow sines an axis."""
    rate, phase = rng.uniform(1.0, 6.0, (2, 2)), rng.uniform(0, 2 * np.pi, (2, 2))
    return np.asarray(np.sin(times[:, None, None] * rate + phase).sum(axis=1) / np.sqrt(2.0) * 1.4)


def render(verb: str, name: str, style: ClipStyle, times: Array, size: int, motion_noise: float) -> Frames:
    """Frames uint8 [N, size, size, 3] of the verb done to the object, at `times` (seconds of the clip's source)."""
    scene = Scene(verb, name, style, times, size, motion_noise)
    return np.stack([scene.frame(i) for i in range(len(times))])
