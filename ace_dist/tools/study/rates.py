"""The search for learning rates on base classes: which runs the rule asks for next, and which rates it takes.

The rule is the same for every method, and is the one that chose the rates of the tabletop study. Whole groups of
*training* clips (people, environments) are held out; no novel action and no test clip is looked at.

1. The video side's rate at a quarter, once and four times the recipe's, and further up while the largest is best.
2. With the rate taken, the text side's in the same way, where text trains.
3. Taken is the smallest rate within one standard error (binomial, over the held-out clips) of the best accuracy.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.cluster.sweep import SweepRun, run_id
from ace_dist.config import Config, load_config
from ace_dist.tools.study.tables import experiments_by_dataset
from ace_dist.utils.errors import ConfigError, RunError
from ace_dist.utils.files import write_text
from ace_dist.utils.reading import read_object
from ace_dist.utils.tables import csv_text

FACTOR, LARGEST = 4.0, 4.0**5  # steps of the search; no rate above LARGEST times the recipe's is tried
HELD_OUT = ("seed=100", "evaluation.validation_share=0.25", "evaluation.every_steps=1000000", "evaluation.test=false")
HEADER = ("method", "lr_video", "lr_text", "base_accuracy", "base_f1", "clips")


@dataclass(frozen=True)
class Score:
    """Accuracy and macro F1 on held-out clips of base actions, in percent, and how many clips they are of."""

    accuracy: float
    f1: float
    clips: int


def wanted_rates(scores: Mapping[float, Score], recipe: float) -> list[float]:
    """The rates that the rule asks for and that have no score yet; none: it has all it needs to choose."""
    first = [recipe / FACTOR, recipe, recipe * FACTOR]
    if missing := [rate for rate in first if rate not in scores]:
        return missing
    largest = max(scores)
    at_the_edge = scores[largest].accuracy == max(score.accuracy for score in scores.values())
    return [largest * FACTOR] if at_the_edge and largest * FACTOR <= recipe * LARGEST else []


def chosen_rate(scores: Mapping[float, Score]) -> float:
    """The smallest rate within one binomial standard error of the best accuracy."""
    best = max(scores.values(), key=lambda score: score.accuracy)
    share = best.accuracy / 100
    error = 100 * math.sqrt(share * (1 - share) / best.clips)
    return min(rate for rate, score in scores.items() if score.accuracy >= best.accuracy - error)


class RateSearch:
    """The search for one method: `settings` name its data set and experiment; scores are read from finished runs."""

    def __init__(
        self, method: str, settings: Sequence[str], folder: Path, load: Callable[[Sequence[str]], Config]
    ) -> None:
        self.method, self.folder = method, folder
        given = {setting.partition("=")[0] for setting in settings}
        held_out = [setting for setting in HELD_OUT if setting.partition("=")[0] not in given]
        if "evaluation.validation_groups" in given:
            held_out = [setting for setting in held_out if not setting.startswith("evaluation.validation_share")]
        self.settings = [*settings, *held_out, f"method={method}"]
        training, model = (config := load(self.settings)).training, config.model
        if training.max_steps == 0:
            raise ConfigError(f"method={method} does not train, so there is no rate to search for")
        self.video, self.text, self.new = training.lr_video, training.lr_text, training.lr_new
        text = model.text
        self.text_trains = bool(text.trained_layers or text.train_projection or text.prompt_tokens)

    def run(self, video: float, text: float) -> SweepRun:
        """The training of one pair of rates; what starts anew keeps its ratio to the video side's rate."""
        rates = {"training.lr_video": f"{video:.6g}", "training.lr_text": f"{text:.6g}"}
        named = {"method": self.method, **{key.removeprefix("training."): value for key, value in rates.items()}}
        if self.new is not None:
            rates["training.lr_new"] = f"{video * self.new / self.video:.6g}"
        return SweepRun(run_id(named), named, [*self.settings, *(f"{key}={value}" for key, value in rates.items())])

    def score(self, video: float, text: float) -> Score | None:
        path = self.folder / self.run(video, text).id / "results.json"
        if not path.is_file():
            return None
        if (found := read_object(path, RunError).get("validation")) is None:
            raise RunError(
                f"{path} has no validation, by which rates are chosen: an earlier version tested the run; delete it, "
                f"and the same command writes it again"
            )
        return Score(found["accuracy"], found["f1"], found["clips"])

    def scores(self, side: str) -> dict[float, Score]:
        """Scores by the rate of one side, whatever else the folder holds; the text side's at the video rate taken."""
        recipe = getattr(self, side)
        rates = [recipe / FACTOR * FACTOR**k for k in range(8)]
        pairs = [(rate, self.text) if side == "video" else (self.chosen("video"), rate) for rate in rates]
        found = {rate: self.score(*pair) for rate, pair in zip(rates, pairs, strict=True)}
        return {rate: score for rate, score in found.items() if score is not None}

    def chosen(self, side: str) -> float:
        return chosen_rate(self.scores(side))

    def wanted(self) -> list[SweepRun]:
        """The runs that come next; none when both rates are chosen."""
        if rates := wanted_rates(self.scores("video"), self.video):
            return [self.run(rate, self.text) for rate in rates]
        if not self.text_trains:
            return []
        return [self.run(self.chosen("video"), rate) for rate in wanted_rates(self.scores("text"), self.text)]

    def settings_to_use(self) -> str:
        """The rates taken, as settings for the command line."""
        video = self.chosen("video")
        text = self.chosen("text") if self.text_trains else self.text
        return " ".join(setting for setting in self.run(video, text).overrides if setting.startswith("training.lr_"))

    def rows(self) -> list[list[str]]:
        pairs = {(rate, self.text): score for rate, score in self.scores("video").items()}
        if self.text_trains:
            pairs |= {(self.chosen("video"), rate): score for rate, score in self.scores("text").items()}
        return [
            [self.method, f"{video:.6g}", f"{text:.6g}", f"{s.accuracy:.2f}", f"{s.f1:.2f}", str(s.clips)]
            for (video, text), s in sorted(pairs.items())
        ]


def build_searches(
    settings: Sequence[str], folder: Path, load: Callable[[Sequence[str]], Config] = load_config
) -> list[RateSearch]:
    """A search for each of `method=NAME,...`; `dataset=NAME` stands for its experiment where none is given."""
    given = dict(setting.split("=", 1) for setting in settings if "=" in setting)
    experiments = experiments_by_dataset("table1")
    dataset = given.get("dataset", "")
    if not given.get("method") or (dataset not in experiments and "experiment" not in given):
        raise ConfigError(
            f"search=rates needs method=NAME and dataset=NAME, one of {', '.join(experiments)}, or experiment=NAME"
        )
    rest = [setting for setting in settings if setting.partition("=")[0] != "method"]
    if "experiment" not in given:
        rest = [f"experiment={experiments[dataset]}", *(s for s in rest if not s.startswith("dataset="))]
    return [RateSearch(method, rest, folder, load) for method in given["method"].split(",")]


def write_rates(searches: Sequence[RateSearch], path: Path) -> None:
    """Every pair that was tried with its score, as CSV."""
    write_text(path, csv_text([HEADER, *(row for search in searches for row in search.rows())]))
