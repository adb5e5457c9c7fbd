"""Write a run's report again, beside other runs: `python launchers/report.py run=DIR compare='[DIR, DIR]'`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ace_dist.config import ConfigError, run_launcher, typed_settings


@dataclass
class Settings:
    """What to report; every run must be finished and of the same data set and fold."""

    run: str = ""
    compare: list[str] = field(default_factory=list)
    picture: str | None = None  # a PNG file: concept space before and after beside the scores


def main(argv: Sequence[str]) -> None:
    """Write `report.html` and `figures/` into the run's folder, and the picture when asked for."""
    settings = typed_settings(argv, Settings)
    if not settings.run:
        raise ConfigError("run is not set: give a run folder as run=... and others to compare as compare='[DIR, DIR]'")
    from ace_dist.evaluation.report import result_picture, write_report

    compare = [Path(folder) for folder in settings.compare]
    print(f"report: {write_report(Path(settings.run), compare)}")
    if settings.picture:
        print(f"picture: {result_picture(Path(settings.run), Path(settings.picture), compare)}")


if __name__ == "__main__":
    run_launcher(main)
