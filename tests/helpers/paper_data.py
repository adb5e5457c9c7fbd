"""Small copies of the paper's data sets in their own layouts, with rendered videos and labels drawn afresh."""

from __future__ import annotations

import csv
import json
import sqlite3
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from data_worlds import numbered_frames

GTEA_VERBS = ("take", "open", "pour", "close", "shake", "scoop", "stir", "put", "fold", "spread")
GTEA_DISHES = ("Cheese", "Coffee", "CofHoney", "Hotdog", "Pealate", "Peanut", "Tea")
FAST = {"preset": "ultrafast", "crf": "30", "g": "30"}


def write_numbered(path, count, rate, size=(32, 32), codec="libx264"):
    """A video whose frame k shows k modulo 256; its clock ticks once a frame, as those of the data sets do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = numbered_frames(min(256, count), *size)
    rate = Fraction(rate).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=FAST if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = 1 / rate
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(pictures[index % 256], format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_gtea(root, labels, videos="videos", rate=15):
    """The MS-TCN layout from `labels`: name -> one label a frame. Videos have as many frames as there are labels."""
    for folder in ("groundTruth", "splits"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, lines in labels.items():
        (root / "groundTruth" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        write_numbered(root / videos / f"{name}.mp4", len(lines), rate)
    for number in range(1, 5):
        for part in ("train", "test"):
            names = [name for name in labels if name.startswith(f"S{number}_") == (part == "test")]
            bundle = root / "splits" / f"{part}.split{number}.bundle"
            bundle.write_text("".join(f"{name}.txt\n" for name in names))
    verbs = [*GTEA_VERBS, "background"]
    (root / "mapping.txt").write_text("".join(f"{k} {verb}\n" for k, verb in enumerate(verbs)))
    return root


def random_gtea(dishes=1, length=(20, 30), seed=None):
    """Labels of 4 subjects: every verb once a video, in random order, with or without background between them."""
    rng = np.random.default_rng(seed)
    labels = {}
    for subject in range(1, 5):
        for dish in GTEA_DISHES[:dishes]:
            lines = []
            for verb in rng.permutation(GTEA_VERBS):
                lines += ["background"] * int(rng.integers(0, 4)) + [str(verb)] * int(rng.integers(*length))
            labels[f"S{subject}_{dish}_C1"] = lines
    return labels


IKEA_ACTIONS = (
    "", "pick up ...", "lay down ...", "spin leg", "push ...", "slide bottom of drawer", "other", "sit on ...",
)  # fmt: skip
IKEA_OBJECTS = ("", "leg", "table", "shelf", "table top")


def write_ikea(root, scans, database="annotations/action_annotations/ikea_annotation_db_full"):
    """The SQLite database and videos of IKEA-ASM.

    `scans`: 'Furniture/scan' -> {device: (frames of the file or 0 for none, nframes of the database, rate, rows or
    None when it is not annotated, folder)}, a row being (starting_frame, ending_frame, action_description,
    object_name). Names of tables and columns are the release's, and so are the blank first action and object.
    """
    path = root / database
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE videos (id INTEGER PRIMARY KEY, video_name TEXT, video_path TEXT, furniture TEXT, camera TEXT,
                             annotated INTEGER, nframes INTEGER);
        CREATE TABLE atomic_actions (id INTEGER PRIMARY KEY, atomic_action TEXT);
        CREATE TABLE objects (id INTEGER PRIMARY KEY, object TEXT);
        CREATE TABLE annotations (id INTEGER PRIMARY KEY, video_id INTEGER, atomic_action_id INTEGER, object_id INTEGER,
                                  starting_frame INTEGER, ending_frame INTEGER, action_description TEXT,
                                  object_name TEXT);
        """
    )
    connection.executemany("INSERT INTO atomic_actions (atomic_action) VALUES (?)", [(a,) for a in IKEA_ACTIONS])
    connection.executemany("INSERT INTO objects (object) VALUES (?)", [(o,) for o in IKEA_OBJECTS])
    for scan, devices in scans.items():
        furniture, name = scan.split("/")
        for device, (held, stated, rate, rows, folder) in devices.items():
            cursor = connection.execute(
                "INSERT INTO videos (video_name, video_path, furniture, camera, annotated, nframes) "
                "VALUES (?,?,?,?,?,?)",
                (name, f"{scan}/{device}/images", furniture.replace("_", " "), device, rows is not None, stated),
            )
            for start, end, action, target in rows or ():
                connection.execute(
                    "INSERT INTO annotations (video_id, atomic_action_id, object_id, starting_frame, ending_frame, "
                    "action_description, object_name) VALUES (?,?,?,?,?,?,?)",
                    (
                        cursor.lastrowid,
                        IKEA_ACTIONS.index(action) + 1,
                        IKEA_OBJECTS.index(target) + 1,
                        start,
                        end,
                        action,
                        target,
                    ),
                )
            if held:
                video = root / folder / scan / device / "images" / "scan_video.avi"
                write_numbered(video, held, rate, size=(64, 64), codec="mpeg4")  # OpenCV's DIVX
    connection.commit()
    connection.close()
    return root


def write_segments(path, scans):
    """gt_segments.json: scan -> [(label, first, last)]; the last frame is included."""
    database = {
        scan: {
            "subset": "testing",
            "annotation": [{"label": label, "segment": [first, last]} for label, first, last in parts],
        }
        for scan, parts in scans.items()
    }
    path.write_text(json.dumps({"version": "VERSION 1.3", "database": database}))
    return path


def write_ata(root, rows, frames=80, rate=30):
    """manifest.csv of rows (video, view, person, toy, start_frame, end_frame, label), and its videos."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "view", "person", "toy", "start_frame", "end_frame", "label"])
        writer.writerows(rows)
    for video in {row[0] for row in rows}:
        if not Path(root / video).exists():
            write_numbered(root / video, frames, rate)
    return root
