"""The licences of the weights that a run started from, which bind whatever descends from it."""

import re
from collections.abc import Mapping
from pathlib import Path

from ace_dist.data.run_inputs import read_inputs

RESTRICTS = re.compile(r"non-commercial|-NC\b")


def start_licences(run: Path) -> dict[str, str]:
    """Side -> licence of the weights that the run, or the run that it started from, began with."""
    return read_inputs(run)["licences"] or {}


def is_non_commercial(licence: str) -> bool:
    return RESTRICTS.search(licence) is not None


def binding_licence(licences: Mapping[str, str]) -> str | None:
    """The first of them that forbids commercial use."""
    return next(filter(is_non_commercial, licences.values()), None)


def licence_note(run: Path) -> str | None:
    """What results say of a run that began with weights that nobody may sell; None for all others."""
    if (licence := binding_licence(start_licences(run))) is None:
        return None
    return f"not for commercial use: it started from weights under {licence}, which binds what is trained from them"
