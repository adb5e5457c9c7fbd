"""Long videos of the tabletop world: jobs of several steps, with pauses, mistakes and a label for every frame.

Each video shows one person doing one job: a drawn list of steps, with pauses between them, and with drawn deviations
(a step left out, done twice or too early, or something that is no step). In the layout of MS-TCN's data sets:

    FOLDER/videos/NAME.mp4
    FOLDER/groundTruth/NAME.txt            a label a frame; "background" in the pauses
    FOLDER/mapping.txt                     all labels, numbered
    FOLDER/splits/{train,test}.split1.bundle
    FOLDER/procedures/NAME.json            the job's steps, and the deviations of this video

People of the test are those of the world's test clips, so training has not seen them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from ace_dist.utils.files import write_json, write_text
from ace_dist.worlds.tabletop.rendering import Scene
from ace_dist.worlds.tabletop.world import (
    BASE_ACTIONS,
    NOVEL_ACTIONS,
    ClipStyle,
    TabletopConfig,
    draw_person,
    draw_style,
)

SEED_PROCEDURES = 5  # beside the world's other seeds
BACKGROUND = "background"
STEPS = (7, 10)  # of a job
STEP_S = (2.0, 4.5)
PAUSE_S = (0.5, 3.5)
DEVIATIONS = ("missing", "repeated", "swapped", "extra")
DEVIATION_SHARE = 0.75  # of the videos that have one or two
Action = tuple[str, str]


@dataclass(frozen=True)
class ProcedureVideo:
    """What happens in one video: `spans` (start_s, end_s, action), all else is pause."""

    name: str
    split: str
    person: int
    steps: tuple[Action, ...]
    spans: tuple[tuple[float, float, Action], ...]
    deviations: tuple[tuple[str, str], ...]  # kind and label, as `segment.procedure` names them
    duration_s: float


def draw_procedure_video(world: TabletopConfig, split: str, index: int) -> ProcedureVideo:
    """Video `index` of a split: a pure function of (world.seed, split, index)."""
    train = split == "train"
    rng = np.random.default_rng([world.seed, SEED_PROCEDURES, int(train), index])
    first, people = (0, world.train_people) if train else (world.train_people, world.test_people)
    actions = list(BASE_ACTIONS) if train else list(BASE_ACTIONS + NOVEL_ACTIONS)
    order = rng.permutation(len(actions))
    count = int(rng.integers(STEPS[0], STEPS[1] + 1))
    steps = tuple(actions[i] for i in order[:count])
    done, deviations = deviate(rng, list(steps), [actions[i] for i in order[count:]])
    spans, now = [], float(rng.uniform(*PAUSE_S))
    for action in done:
        length = float(rng.uniform(*STEP_S))
        spans.append((on_frame(now, world.fps), on_frame(now + length, world.fps), action))
        now += length + float(rng.uniform(*PAUSE_S))
    person = first + int(rng.integers(people))
    name = f"job-{split}-{index:03d}"
    return ProcedureVideo(name, split, person, steps, tuple(spans), tuple(deviations), on_frame(now, world.fps))


def on_frame(time_s: float, fps: float) -> float:
    return round(time_s * fps) / fps


def deviate(
    rng: np.random.Generator, done: list[Action], others: Sequence[Action]
) -> tuple[list[Action], list[tuple[str, str]]]:
    """The steps as they are done, with up to two deviations of different kinds, and what these are."""
    found: list[tuple[str, str]] = []
    if rng.random() > DEVIATION_SHARE:
        return done, found
    touched: set[Action] = set()
    for kind in rng.permutation(DEVIATIONS)[: int(rng.integers(1, 3))]:
        places = [i for i in range(2, len(done) - 1) if not touched & set(done[i - 1 : i + 1])]
        if not places:
            break
        place = int(rng.choice(places))
        action = done[place]
        if kind == "missing":
            del done[place]
        elif kind == "repeated":
            done.insert(place + 1, action)
        elif kind == "swapped":  # with the step before it: done too early
            done[place - 1], done[place] = done[place], done[place - 1]
            touched.add(done[place])
        else:
            action = others[int(rng.integers(len(others)))]
            done.insert(place, action)
        touched.add(action)
        found.append((str(kind), " ".join(action)))
    return done, found


def frames(video: ProcedureVideo, world: TabletopConfig) -> Iterator[NDArray[np.uint8]]:
    """The frames [H, W, 3] of a video, in order: one table and camera, an object for each step."""
    rng = np.random.default_rng([world.seed, SEED_PROCEDURES, 2, video.person, len(video.spans)])
    person = draw_person(world.seed, video.person, world.domain_shift)
    room = draw_style(rng, person, world, world.domain_shift)
    now = 0.0
    for start_s, end_s, action in (*video.spans, (video.duration_s, video.duration_s, ("", ""))):
        yield from scene_frames(("", ""), now, start_s, in_room(rng, room, world), world)
        yield from scene_frames(action, start_s, end_s, in_room(rng, room, world), world)
        now = end_s


def in_room(rng: np.random.Generator, room: ClipStyle, world: TabletopConfig) -> ClipStyle:
    """The style of another action before the same camera, at the same table, by the same person."""
    own = draw_style(rng, room.person, world, room.shift)
    kept = {name: getattr(room, name) for name in ("roll", "zoom", "light", "wash", "grain", "jitter", "paint_seed")}
    return dataclasses.replace(own, **kept)


def scene_frames(
    action: Action, start_s: float, end_s: float, style: ClipStyle, world: TabletopConfig
) -> Iterator[NDArray[np.uint8]]:
    count = round((end_s - start_s) * world.fps)
    if count:
        length = count / world.fps
        manner = dataclasses.replace(style.manner, cycles=style.person.tempo * length * 0.9)
        style = dataclasses.replace(style, segment=(0.0, length), manner=manner)
        scene = Scene(*action, style, np.arange(count) / world.fps, world.size, world.motion_noise)
        yield from (scene.frame(i) for i in range(count))


def frame_labels(video: ProcedureVideo, fps: float) -> list[str]:
    """The true label of every frame."""
    labels = [BACKGROUND] * round(video.duration_s * fps)
    for start_s, end_s, action in video.spans:
        first, last = round(start_s * fps), round(end_s * fps)
        labels[first:last] = [" ".join(action)] * (last - first)
    return labels


def write_videos(folder: Path, world: TabletopConfig, train: int, test: int, codec: str = "mjpeg") -> None:
    """Render `train` and `test` videos into `folder`; those that are whole there already are kept."""
    for part in ("videos", "groundTruth", "splits", "procedures"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {"train": [], "test": []}
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            video = draw_procedure_video(world, split, index)
            names[split].append(video.name)
            write_one(folder, video, world, codec)
    labels = [BACKGROUND, *(" ".join(action) for action in BASE_ACTIONS + NOVEL_ACTIONS)]
    write_text(folder / "mapping.txt", "".join(f"{i} {label}\n" for i, label in enumerate(labels)))
    for split, listed in names.items():
        write_text(folder / "splits" / f"{split}.split1.bundle", "".join(f"{name}.txt\n" for name in listed))


def write_one(folder: Path, video: ProcedureVideo, world: TabletopConfig, codec: str) -> None:
    path = folder / "videos" / f"{video.name}.mp4"
    if not path.is_file():
        part = path.with_name(f".{path.name}.part")
        encode_frames(part, frames(video, world), world, codec)
        part.replace(path)
    write_text(folder / "groundTruth" / f"{video.name}.txt", "".join(f"{x}\n" for x in frame_labels(video, world.fps)))
    job = {"steps": [" ".join(step) for step in video.steps], "deviations": [list(each) for each in video.deviations]}
    write_json(folder / "procedures" / f"{video.name}.json", job)


def encode_frames(path: Path, pictures: Iterator[NDArray[np.uint8]], world: TabletopConfig, codec: str) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(world.fps).limit_denominator(1001))
        stream.width = stream.height = world.size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {"qmin": "2", "qmax": "4"} if codec == "mjpeg" else {}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
