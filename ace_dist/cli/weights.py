"""Weights of others, and the encoders that take them: `ace weights`, `ace models`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ace_dist.config import help_asked, parse_settings


def import_weights(argv: list[str]) -> None:
    """Bring others' weights in: `ace weights source=FILE output=FILE.safetensors [tower=NAME]`.

    Reads, converts, reports, and writes when nothing is missing, left over or of another shape. With `model=NAME` a
    file or folder of open_clip, ViCLIP or InternVideo2 becomes all files of that model, tokenizer included, in the
    folder `output`; a video model of transformers becomes its video side.
    """
    from ace_dist.models.convert.importing import ImportConfig, import_command
    from ace_dist.models.convert.known import import_model

    settings = parse_settings(argv, ImportConfig)
    (import_command if settings.model is None else import_model)(settings)


def get_weights(argv: list[str]) -> None:
    """Download released weights and convert them: `ace weights get clip_b16`; without a name it lists them.

    Says the licence, and waits for `accept_licence=true` where it restricts. A stopped download goes on.
    HF_HUB_OFFLINE, HF_ENDPOINT (a mirror), HF_TOKEN and HF_HOME hold.
    """
    from ace_dist.models.convert.known import GetSettings, get_command, known_table

    if not argv or help_asked(argv):
        print("", known_table(), sep="\n")
    if argv:
        named = [f"name={word}" if re.fullmatch(r"\w+", word) else word for word in argv[:1]]
        get_command(parse_settings([*named, *argv[1:]], GetSettings))


def pretrain_tabletop(argv: list[str]) -> None:
    """Pretrain both tabletop towers: `ace weights pretrain [output=DIR] [pretrain.steps=N]`.

    `output=ace_dist/assets/weights/tabletop` replaces the weights that the repository ships; without it they stay.
    """
    from ace_dist.worlds.tabletop.pretraining import pretrain_command

    pretrain_command(argv)


@dataclass
class ModelsSettings:
    model: str | None = None  # one of configs/model; null: all
    frames: int = 8  # of a clip


def models(argv: list[str]) -> None:
    """List the encoders of configs/model: parameters, FLOPs a clip, licence, where weights come from, what trains.

    `ace models`, or one of them: `ace models model=pe_core_b16 frames=16`.
    """
    settings = parse_settings(argv, ModelsSettings)
    from ace_dist.tools.models import models_table

    print(models_table(settings.frames, settings.model))
