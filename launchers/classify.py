"""Classify a video among any labels: `python launchers/classify.py run=DIR video=FILE actions='[spin block, ...]'`."""

from __future__ import annotations

from collections.abc import Sequence

from ace_dist.config import run_launcher, simple_settings


def main(argv: Sequence[str]) -> None:
    """Print the probability of each label, and what was averaged for it."""
    settings = simple_settings(
        argv,
        {"run": "a run folder", "video": "a video file", "actions": "a list such as '[spin block, hammer pin]'"},
        {"start_s": "start of the action in seconds", "end_s": "its end"},
    )
    from ace_dist.evaluate.classifier import Classifier

    classifier = Classifier.from_run(settings["run"])
    result = classifier.classify(
        settings["video"], settings["actions"], start_s=settings["start_s"], end_s=settings["end_s"]
    )
    print(result.table())


if __name__ == "__main__":
    run_launcher(main)
