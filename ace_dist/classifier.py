"""A trained model in use: any video and any action labels in, probabilities out."""

import copy
import html
import os
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Self, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ace_dist.concepts import FreeLabel, LabelSet, Policy, SynonymTrees, free_labels
from ace_dist.concepts.actions import base_forms, listed_texts, normalise
from ace_dist.concepts.labels import known_verb
from ace_dist.config import Config
from ace_dist.data.build.live_source import LiveSource
from ace_dist.data.loader.single_video import LooseClip, Video, is_batch, read_clip
from ace_dist.data.run_inputs import run_config
from ace_dist.data.task import load_test_trees
from ace_dist.evaluate.export import read_exported
from ace_dist.evaluate.hub import exported_folder
from ace_dist.evaluate.protocols import MEANING, WITHOUT_NODE, EncodedTest, encode_phrases, mean_cosines, score
from ace_dist.evaluate.runs import interpolated, trained_model
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.segment.embed import Progress, embed_video
from ace_dist.segment.live import Labeller, LiveEvent, watch, watch_frames
from ace_dist.segment.procedure import Procedure
from ace_dist.segment.segmenter import Calibration, check_steps, segment
from ace_dist.segment.timeline import Timeline
from ace_dist.segment.windows import WindowGrid
from ace_dist.utils.console import say_once
from ace_dist.utils.errors import ConfigError, DataError, LabelError, ModelError
from ace_dist.utils.extras import require
from ace_dist.utils.pictures import data_uri, png

SHOWN = 8  # frames that a result keeps

# OpenMP's threads are not copied by a fork, and torch would wait for them for ever, say in a pool of processes. As in
# torch's own data loader, a forked process computes with one thread.
os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


@dataclass(frozen=True, slots=True)
class Classification(Mapping[str, float]):
    """Label → probability, most probable first; `labels` says what was averaged for each.

    `cosines`: label → mean cosine over the views (Eq. 3, without temperature). `fits`: whether any of the labels
    does, by the model's calibration; None without one (`ace calibrate`).
    `frames`: at most eight that the model saw, uint8 RGB [N, H, W, 3], for notebooks.
    Labels are in their one form, and are found in any spelling: `result["Pick_Up Screw"]` is `result["pick up screw"]`.
    """

    probabilities: Mapping[str, float]
    labels: tuple[FreeLabel, ...]
    distinct_views: int
    cosines: Mapping[str, float] = field(default_factory=dict)
    fits: bool | None = None
    frames: NDArray[np.uint8] | None = field(default=None, compare=False)

    @property
    def label(self) -> str | None:
        """The most probable label; None when none of them fits."""
        return None if self.fits is False else next(iter(self.probabilities))

    @property
    def cosine(self) -> float:
        """Of the most probable label."""
        return self.cosines[next(iter(self.probabilities))]

    def __post_init__(self) -> None:
        for name in ("probabilities", "cosines"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable labels with their probabilities."""
        return list(self.probabilities.items())[:count]

    def __repr__(self) -> str:
        shown = ", ".join(f"{label!r} {probability:.1%}" for label, probability in self.top(3))
        more = f", {len(self) - 3} more" if len(self) > 3 else ""
        return f"Classification({shown}{more}{'; none fits' if self.fits is False else ''})"

    def _repr_html_(self) -> str:
        """Frames and table, as a notebook shows them."""
        pictures = "".join(f'<img src="{data_uri("image/png", png(frame))}">' for frame in self._frames())
        return f"<div>{pictures}</div><pre>{html.escape(self.table())}</pre>"

    def _frames(self) -> list[NDArray[np.uint8]]:
        return [] if self.frames is None else list(self.frames)

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:  # a mapping proxy has no pickle and no copy
        cosines = dict(self.cosines)
        return type(self), (dict(self.probabilities), self.labels, self.distinct_views, cosines, self.fits, self.frames)

    def __getitem__(self, label: str) -> float:
        return self.probabilities[normalise(label)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.probabilities)

    def __len__(self) -> int:
        return len(self.probabilities)

    def table(self) -> str:
        """One line a label: probability, label, and the words that stand for it."""
        width, lines = max(map(len, self.probabilities)), []
        words = {label.label: label.phrases if label.tree else () for label in self.labels}
        for label, probability in self.probabilities.items():
            group = words[label]
            meaning = f"mean over {len(group)} synonyms: {', '.join(group)}" if group else "stands alone"
            lines.append(f"{probability:7.1%}  {label:{width}}  {meaning}")
        if self.fits is False:
            lines.append("none of these: the video is less like any label than actions of the training are like theirs")
        return "\n".join(lines)


class Classifier:
    """A finished run, ready to name the action of any video among any labels.

    A video is a path, a file opened in binary mode, pictures as an array or a tensor, uint8 RGB [T, H, W, 3], or a list
    of T pictures [H, W, 3] (arrays, tensors, PIL). A list of videos is encoded together and answered by a list.

    Labels whose verb is in a synonym tree are averaged over its node when the run was trained with leaf augmentation
    (ACE Eq. 3 and "Inference"). When a verb is in no tree, `evaluation.labels_without_node` decides: all labels stand
    alone by default, so that all are scored alike. The result says what was averaged.

    It may be used by several threads at once. A pickle or a copy holds the weights, so it needs no folder; where there
    is no device of that name, it comes back on the CPU. Processes of a pool get it once by an initializer, or load it.
    """

    def __init__(
        self, config: Config, model: DualEncoder, trees: SynonymTrees, calibration: Calibration | None = None
    ) -> None:
        self.config = config
        self.model = model.eval()
        self.trees = trees
        self.calibration = calibration or Calibration()

    def __repr__(self) -> str:
        method, device = self.config.method.name, next(self.model.parameters()).device
        video, text = (side.arch or side.tower for side in (self.config.model.video, self.config.model.text))
        calibrated = "calibrated" if self.calibration.is_calibrated else "not calibrated"
        return f"Classifier({method} on {self.config.dataset.name}, {video} and {text}, {device}, {calibrated})"

    @property
    def temperature(self) -> float:
        """What the softmax over labels divides cosines by: the method's, over the learned scale where there is one."""
        return self.model.similarity.learned_temperature(self.config.method.temperature)

    def __getstate__(self) -> dict[str, Any]:
        device = next(self.model.parameters()).device
        model = self.model
        if device.type != "cpu":
            model = copy.deepcopy(model).cpu()
            model.video.forget_device()
        return {**self.__dict__, "model": model, "device": str(device)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        device = torch.device(state.pop("device"))
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            say_once(f"there is no device {device} here: the classifier computes on the CPU")
            device = torch.device("cpu")
        self.__dict__.update(state)
        self.model = self.model.to(device)

    @classmethod
    def from_run(cls, run: str | Path, device: str | torch.device = "auto", interpolate: float | None = None) -> Self:
        """Load a finished run folder onto a device; auto: a GPU where there is one.

        With `interpolate` its weights at another share of the way from before training to after than its own, without
        its calibration, which is of its own weights. Raises `UserError` naming the file that is missing.
        """
        place, own = choose_device(device), run_config(Path(run))
        config = interpolated(own, interpolate)
        model = trained_model(Path(run), config, place)
        calibrated = config.evaluation.interpolate == own.evaluation.interpolate
        learned = config.model.similarity.learn_temperature
        return cls(config, model, load_test_trees(config), Calibration.load(Path(run), learned) if calibrated else None)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | torch.device = "auto", revision: str | None = None
    ) -> Self:
        """Load a folder that `ace export` wrote, or OWNER/NAME of the hub that its `push=` filled.

        From the hub come the files of its `SHA256SUMS`, which are compared with it, and no pickle; `revision` is a
        branch, tag or commit there. Raises `UserError` naming the file that is missing or damaged.
        """
        place, folder = choose_device(device), exported_folder(folder, revision)
        config, model = read_exported(folder)
        calibration = Calibration.load(folder, config.model.similarity.learn_temperature)
        return cls(config, model.to(place), load_test_trees(config), calibration)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "auto", interpolate: float | None = None) -> Self:
        """Load a finished run folder or an export, whichever `folder` is; `interpolate` as in `from_run`."""
        if not (Path(folder) / "video").is_dir():
            return cls.from_run(folder, device, interpolate)
        if interpolate is not None:
            raise ModelError(
                f"evaluation.interpolate={interpolate:g}: {folder} is an export, which holds one set of weights; give "
                f"the run that was exported"
            )
        return cls.from_pretrained(folder, device)

    @overload
    def classify(
        self,
        video: str | Path | BinaryIO | NDArray[np.uint8] | Tensor,
        actions: str | Iterable[str],
        *,
        start_s: float | None = ...,
        end_s: float | None = ...,
        fps: float | None = ...,
    ) -> Classification: ...

    @overload
    def classify(self, video: Sequence[Any], actions: str | Iterable[str], *, fps: float | None = ...) -> Any: ...

    @torch.no_grad()
    def classify(
        self,
        video: Video,
        actions: str | Iterable[str],
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        fps: float | None = None,
    ) -> Any:
        """Probabilities of `actions` (two or more, any words) for a video, or for a part of it in seconds.

        A list of videos gives a list of results. `fps` is the rate of pictures in memory; without it those of a video
        last `dataset.clip.seconds` together. The video goes through the same cutting, encoding, cropping and view
        fusion as a test clip of the run's shards. Raises `UserError` for a video that cannot be read, is too short or
        too long, and for unusable labels.
        """
        labels = self.labels(actions)
        clips = self.read(video, start_s, end_s, fps)
        names = LabelSet(tuple(label.label for label in labels), tuple(label.phrases for label in labels))
        embeddings = self.encode(torch.cat([clip.video for clip in clips]))
        probabilities = self.clip_probabilities(embeddings, [names], len(clips))[0]
        (cosines_NK,) = mean_cosines(self.model, embeddings, [names.phrases])
        results = []
        for number, clip in enumerate(clips):
            rows = slice(number * len(clip.video), (number + 1) * len(clip.video))
            cosines = cosines_NK[rows].double().mean(0, keepdim=True).numpy()
            ranked = sorted(zip(names.labels, probabilities[number], strict=True), key=lambda pair: -pair[1])
            results.append(
                Classification(
                    dict(ranked),
                    tuple(labels),
                    clip.distinct_views,
                    dict(zip(names.labels, cosines[0].tolist(), strict=True)),
                    self.calibration.fits(embeddings[rows].double().mean(0, keepdim=True).numpy(), cosines),
                    self.pictures(clip),
                )
            )
        return results if is_batch(video) else results[0]

    @torch.no_grad()
    def encode_video(
        self, video: Video, *, start_s: float | None = None, end_s: float | None = None, fps: float | None = None
    ) -> Tensor:
        """The embedding [D] of a video, or [N, D] of a list: the mean of its views' unit vectors, float32 on the CPU.

        `encode_video(videos) @ encode_text(actions).T` [N, K] are the cosines of results (Eq. 3).
        """
        self.check_one_vector()
        clips = self.read(video, start_s, end_s, fps)
        views_ND = torch.nn.functional.normalize(self.encode(torch.cat([clip.video for clip in clips])), dim=1)
        embeddings = views_ND.view(len(clips), -1, views_ND.shape[1]).mean(1)
        return embeddings if is_batch(video) else embeddings[0]

    def encode_text(self, actions: str | Iterable[str]) -> Tensor:
        """The embeddings [K, D] of two labels or more: of each the mean of its phrases' unit vectors (`labels`)."""
        self.check_one_vector()
        groups = [label.phrases for label in self.labels(actions)]
        phrases = list(dict.fromkeys(phrase for group in groups for phrase in group))
        row = {phrase: index for index, phrase in enumerate(phrases)}
        units_SD = torch.nn.functional.normalize(encode_phrases(self.model, phrases), dim=1)
        return torch.stack([units_SD[[row[phrase] for phrase in group]].mean(0) for group in groups])

    def check_one_vector(self) -> None:
        if self.config.model.similarity.spotting:
            raise ModelError(
                f"method={self.config.method.name} weighs a video's frames by each label, so that a video has no one "
                "embedding; use classify"
            )

    def read(self, video: Video, start_s: float | None, end_s: float | None, fps: float | None) -> list[LooseClip]:
        """The clips of one video or of a list. Raises `DataError`; start and end are of one video."""
        if not is_batch(video):
            return [read_clip(video, self.config, start_s, end_s, fps=fps)]
        if start_s is not None or end_s is not None:
            raise DataError("start_s and end_s are of one video; classify the parts one by one")
        return [read_clip(each, self.config, None, None, fps=fps) for each in cast(Sequence[Video], video)]

    def pictures(self, clip: LooseClip) -> NDArray[np.uint8]:
        """At most `SHOWN` frames of the middle view of a clip, uint8 RGB [N, H, W, 3]."""
        view = clip.video[len(clip.video) // 2]
        chosen = view[:: -(-len(view) // SHOWN)].permute(0, 2, 3, 1)
        mean, std = torch.tensor(self.config.loader.mean), torch.tensor(self.config.loader.std)
        pixels: NDArray[np.uint8] = (255 * (chosen * std + mean)).round().clamp(0, 255).byte().numpy()
        return pixels

    def segment(
        self,
        video: str | Path,
        actions: str | Iterable[str] | None = None,
        procedure: Procedure | None = None,
        *,
        decoder: str | None = None,
        stride_s: float | None = None,
        cache: str | Path | None = None,
        progress: Progress = lambda done_s, all_s: None,
    ) -> Timeline:
        """What a video of any length shows, when, among `actions` (two or more, any words) or none of them.

        With a `procedure` its steps are the labels, unless others are given, and the timeline says what was done
        otherwise. `decoder`: argmax, viterbi or transport; None: that of the calibration, with a procedure viterbi,
        which alone follows its order. `stride_s`: seconds between windows, None: a quarter of a training clip. `cache`:
        a folder that keeps the embeddings, so that other labels need no video. Raises `UserError` for a video that
        cannot be read to its end, and for unusable labels.
        """
        if procedure:
            require("scipy")  # for the deviations, which come after the whole video
        labels = self.labels(self.asked("segment", actions, procedure))
        if procedure:
            check_steps(procedure, [label.label for label in labels])  # before hours of video are read
        calibration = self.calibration.with_decoder(decoder or ("viterbi" if procedure else None))
        embedded = embed_video(self.model, self.config, video, stride_s, cache, progress)
        return segment(self.model, self.config, embedded, labels, calibration, procedure)

    def stream(
        self,
        source: str | Path | int | Iterable[tuple[float, Any]],
        actions: str | Iterable[str] | None = None,
        procedure: Procedure | None = None,
        *,
        minimum_s: float | None = None,
        stride_s: float | None = None,
        realtime: bool = True,
        give_up_s: float | None = None,
        stop: threading.Event | None = None,
    ) -> Generator[LiveEvent, None, None]:
        """What a live stream shows now, as events: the label when it changes, and every second.

        `source`: a file, which is played, "-" for the standard input, "camera" or a camera's number or device, an
        address (rtsp, http, tcp), or pairs of a time in seconds and a picture, uint8 RGB [H, W, 3]. `actions`: two or
        more, any words; None: the steps of the `procedure`, with which events say what is done otherwise, and when a
        job is done. `minimum_s`: how long a label lasts at least, None: that of the calibration; a change is said
        that much later. `realtime=False`: a file or pipe is read as fast as it goes and no frame is left out.
        `give_up_s`: seconds without a picture after which no new try to connect is made, None: it tries for ever.
        The events end with the source, or when `stop` is set. Raises `UserError` for a source that cannot be read.
        """
        grid = WindowGrid.build(self.config.dataset.clip, stride_s)
        labels = self.labels(self.asked("stream", actions, procedure))
        if procedure:
            check_steps(procedure, [label.label for label in labels])
        labeller = Labeller(self.model, self.config, labels, self.calibration, grid, minimum_s, procedure)
        stop = stop or threading.Event()
        if isinstance(source, str | Path | int):
            return watch(labeller, LiveSource.parse(source), realtime, give_up_s, stop)
        return watch_frames(labeller, source, stop)

    @staticmethod
    def asked(method: str, actions: str | Iterable[str] | None, procedure: Procedure | None) -> str | Iterable[str]:
        """The actions, or the steps of the procedure. Raises `LabelError` when there is neither."""
        if actions is not None:
            return actions
        if procedure is None:
            raise LabelError(f"{method} needs actions=[...] or a procedure")
        return procedure.labels

    def labels(self, actions: str | Iterable[str], policy: Policy | None = None) -> list[FreeLabel]:
        """What stands for each action: the words of its tree where the run was trained with them, or itself alone.

        `policy`: what becomes of a verb without a tree, instead of `evaluation.labels_without_node`.
        """
        actions = listed_texts(actions)
        if not self.config.method.leaf_augmentation:
            return free_labels(actions, None)
        policy = policy or cast(Policy, self.config.evaluation.labels_without_node)
        unknown = [label.label for label in free_labels(actions, self.trees, "alone") if label.tree is None]
        if unknown and policy != "alone":
            words = ", ".join(map(repr, unknown))
            meant = [form for label in unknown for form in base_forms(label) if known_verb(form, self.trees)]
            hint = f" (did you mean {', '.join(map(repr, meant))}?)" if meant else ""
            say_once(f"{self.trees.source} has no node for {words}{hint}; {MEANING[policy]} ({WITHOUT_NODE}={policy})")
        return free_labels(actions, self.trees, policy)

    @torch.no_grad()
    def encode(self, video_NTCHW: Tensor) -> Tensor:
        """Embeddings [N, D] of normalised views, `evaluation.batch_size` at a time, float32 on the CPU."""
        parameter = next(self.model.video.parameters())
        parts = video_NTCHW.split(max(self.config.evaluation.batch_size, self.config.dataset.clip.views))
        return torch.cat([self.model.encode_video(part.to(parameter)).float().cpu() for part in parts])

    def probabilities(self, embeddings_VD: Tensor, label_sets: Sequence[LabelSet]) -> list[list[float]]:
        """Probabilities of one clip among the labels of each set, its views fused as in the run's evaluation."""
        return [rows[0] for rows in self.clip_probabilities(embeddings_VD, label_sets, 1)]

    def clip_probabilities(
        self, embeddings_ND: Tensor, label_sets: Sequence[LabelSet], clips: int
    ) -> list[list[list[float]]]:
        """The same of several clips, whose views follow one another: for each set a row a clip."""
        views = len(embeddings_ND) // clips
        ids = [f"{number:09d}" for number in range(clips) for _ in range(views)]
        test = EncodedTest(ids, list(range(views)) * clips, [0] * len(ids), embeddings_ND, frozenset(ids))
        scored = score(self.model, test, label_sets, self.config)
        assert all(part["ids"] == sorted(test.clips) for part in scored)
        return [part["probabilities"].tolist() for part in scored]


def choose_device(device: str | torch.device) -> torch.device:
    """auto: a GPU where there is one. Raises `ConfigError` for a device that is not here, or is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # the second from a torch without CUDA
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={device} cannot compute here ({reason}); give auto, cpu or cuda") from error
    return chosen
