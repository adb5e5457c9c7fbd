"""From the embeddings of a long video and any labels to its timeline."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ace_dist.concepts import FreeLabel, Phrases
from ace_dist.config import Config, did_you_mean
from ace_dist.evaluate.protocols import mean_cosines
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.segment.decoders import DecoderConfig, build_decoder
from ace_dist.segment.embed import EmbeddedVideo
from ace_dist.segment.procedure import Procedure
from ace_dist.segment.rejection import Floats, Rejection
from ace_dist.segment.timeline import Timeline, build_timeline
from ace_dist.utils.console import say_once
from ace_dist.utils.errors import ConfigError, LabelError
from ace_dist.utils.files import is_listed, write_json
from ace_dist.utils.reading import check_shape, read_object

CALIBRATION = "calibration.json"  # in a run or an export: what `ace calibrate` chose
VERSION = 2  # of that file: the one before has none, and took a learned scale and bias into what it called cosines
REJECT_NOTHING = Rejection(threshold=-1e3, error_rate=0.0)
FLOOR = -12.0  # of log-probabilities: one impossible window must not outweigh ten good ones


@dataclass(frozen=True)
class Calibration:
    """How a model's scores become a timeline: the decoder, and when none of the labels fits.

    `source` says where the numbers come from. Without calibration no window is "none of these".
    """

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    rejection: Rejection = REJECT_NOTHING
    source: str = "not calibrated: no part of a video is 'none of these'"

    @classmethod
    def load(cls, folder: Path, learned_scale: bool = False) -> "Calibration":
        """Of a run or an export; not calibrated when it has no such file. Raises `ConfigError` for a broken one.

        A file of an earlier version says nothing about a model with a learned scale, and is not used.
        """
        path = folder / CALIBRATION
        if not is_listed(folder, CALIBRATION):
            return cls()
        advice = "; write it again: ace calibrate"
        content = read_object(path, ConfigError, advice)
        if learned_scale and content.get("version") != VERSION:
            say_once(f"{path} is not used: an earlier version fitted it to scaled cosines{advice}")
            return cls()
        decoder = check_shape(content.get("decoder"), DecoderConfig, f"{path}, decoder", ConfigError, advice)
        rejection = check_shape(content.get("rejection"), Rejection, f"{path}, rejection", ConfigError, advice)
        return cls(decoder, rejection, str(path))

    @property
    def is_calibrated(self) -> bool:
        return self.rejection.error_rate > 0

    def fits(self, embeddings_ND: Floats, cosines_NK: Floats) -> bool | None:
        """Whether one of the labels fits the mean of these windows; None when not calibrated."""
        if not self.is_calibrated:
            return None
        return bool(self.rejection.scores(embeddings_ND, cosines_NK).mean() >= self.rejection.threshold)

    def with_decoder(self, name: str | None) -> "Calibration":
        return self if name is None else replace(self, decoder=replace(self.decoder, name=name))

    def without_rejection(self) -> "Calibration":
        return replace(self, rejection=replace(REJECT_NOTHING, temperature=self.rejection.temperature))

    def save(self, folder: Path, known: dict[str, Any]) -> None:
        """`known`: what was measured while calibrating."""
        parts = {"version": VERSION, "decoder": vars(self.decoder), "rejection": self.rejection.as_json()}
        write_json(folder / CALIBRATION, parts | {"known": known})


def segment(
    model: DualEncoder,
    config: Config,
    video: EmbeddedVideo,
    labels: Sequence[FreeLabel],
    calibration: Calibration,
    procedure: Procedure | None = None,
) -> Timeline:
    """The timeline of `labels`."""
    (cosines,) = window_similarities(model, [video], tuple(label.phrases for label in labels))
    names = [label.label for label in labels]
    temperature = model.similarity.learned_temperature(config.method.temperature)
    return decode(video, names, cosines, calibration, temperature, procedure)


def window_similarities(model: DualEncoder, videos: Sequence[EmbeddedVideo], phrases: Phrases) -> list[Floats]:
    """Mean cosines [N, K] of each video's windows with classes (Eq. 3); phrases are encoded once."""
    embeddings = torch.from_numpy(np.concatenate([video.embeddings for video in videos]))
    (cosines,) = mean_cosines(model, embeddings, [phrases])
    parts = cosines.double().split([len(video.embeddings) for video in videos])
    return [np.asarray(part.numpy(), np.float64) for part in parts]


def decode(
    video: EmbeddedVideo,
    labels: Sequence[str],
    cosines_NK: Floats,
    calibration: Calibration,
    temperature: float,
    procedure: Procedure | None = None,
) -> Timeline:
    """From similarities to a timeline. `temperature` of the model.

    With a `procedure` the timeline says what was done otherwise. Viterbi follows its order too: changes that it does
    not allow cost twice as much. The other decoders know no order.
    """
    scores = calibration.rejection.log_probabilities(video.embeddings.astype(float), cosines_NK, temperature)
    decoder, costs = calibration.decoder, None
    if procedure is not None:
        check_steps(procedure, labels)
        costs = procedure.switch_costs([*labels, ""], decoder.switch_cost, decoder.switch_cost)
    classes = build_decoder(decoder, video.stride_s, costs)(np.maximum(scores, FLOOR))
    timeline = build_timeline(video, labels, classes, scores, cosines_NK)
    if procedure is None:
        return timeline
    return replace(timeline, deviations=tuple(procedure.deviations(timeline.spans)))


def check_steps(procedure: Procedure, labels: Sequence[str]) -> None:
    """Raise `LabelError` when a step of the procedure is none of the labels."""
    for step in procedure.labels:
        if step not in labels:
            raise LabelError(
                f"{procedure.source}: step {step!r} is not among actions=[{', '.join(labels)}]"
                f"{did_you_mean(step, labels)}; without actions=... the steps themselves are the labels"
            )
