"""How long do the ten SRT runs take, and the whole test (base, novel, SRT), written plainly and ours?

    python benchmarks/bench_eval.py --device cpu            # rows for results/eval.csv
    python benchmarks/bench_eval.py --device cuda

Variants, from the same weights and clips (decoded already: loading is `bench_loading.py`'s question):
- `naive`: a pass over the test videos for each label set (twelve, of the SRT ten), on Hugging Face's models, every
  phrase at 77 tokens once a pass, similarities [B, S] averaged by class.
- `videos_once`: the same, but the videos are encoded once and kept.
- `ours`: videos once, every distinct phrase once at its own length, all label sets in one call of the operator.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from bench_step import Shape, vocabulary
from common import Row, append, one_time, time_in_turns
from naive_step import NaiveText, NaiveVideo, naive_similarity
from torch import Tensor

from ace_dist.concepts import Action, Phrases, SynonymTrees, draw_srt, label_phrases, srt_labels
from ace_dist.evaluate.protocols import similarity
from ace_dist.models.dual_encoder import DualEncoder

RESULTS = Path(__file__).parent / "results"
TEMPERATURE = 0.02
Part = tuple[list[Tensor], list[Phrases]]  # batches of clips, and the label sets that they are tested with


@dataclass(frozen=True)
class Test:
    """A test: clips of base and of novel actions, three views each, and classes for both."""

    shape: Shape
    base_clips: int
    novel_clips: int
    novel_classes: int


TESTS = {
    "cpu": (
        Test(Shape("toy", 16, 8, 10, 11, full=False), 32, 16, 5),
        Test(Shape("full", 2, 8, 10, 11, full=True), 2, 2, 5),
    ),
    "cuda": (Test(Shape("paper_30", 16, 30, 10, 11, full=True), 64, 32, 5),),
}


def label_sets(trees: SynonymTrees, base: Sequence[Action], novel: Sequence[Action]) -> tuple[Phrases, list[Phrases]]:
    """Phrases of the base classes; those of the novel ones, under root labels and ten times under other words."""
    roots = [tuple(label_phrases(a, trees, a.verb, drawn=False) for a in group) for group in (base, novel)]
    runs = srt_labels(novel, draw_srt(novel, trees), trees, leaves=True, source="drawn from the trees")
    return roots[0], [roots[1], *(run.phrases for run in runs)]


@torch.no_grad()
def naive(video: NaiveVideo, text: NaiveText, parts: Sequence[Part], once: bool) -> None:
    """Every label set of every part; the videos again for each of them unless `once`."""
    for batches, sets in parts:
        embeddings = torch.cat([video(batch) for batch in batches]) if once else None
        for phrases in sets:
            flat = [phrase for group in phrases for phrase in group]
            rows = embeddings if embeddings is not None else torch.cat([video(batch) for batch in batches])
            naive_similarity(rows, text(flat), phrases, TEMPERATURE).softmax(1).cpu()


@torch.no_grad()
def ours(model: DualEncoder, parts: Sequence[Part]) -> None:
    """Videos once, phrases once, one call for all label sets of a part."""
    for batches, sets in parts:
        embeddings = torch.cat([model.encode_video(batch).float().cpu() for batch in batches])
        for logits in similarity(model, embeddings, sets, TEMPERATURE):
            logits.softmax(1)


def measure(test: Test, device: str) -> list[Row]:
    """Rows of one test: of all of it, and of its SRT alone."""
    shape, model = test.shape, test.shape.model().to(device).eval()
    trees, base = vocabulary(shape)
    novel_actions = [Action(verb, "panel") for verb in trees.roots[: test.novel_classes]]
    base_sets, novel_sets = label_sets(trees, base, novel_actions)
    size = 224 if shape.full else 48

    def clips(count: int) -> list[Tensor]:
        return list(torch.randn(3 * count, shape.frames, 3, size, size, device=device).split(shape.batch))

    base_part, novel = (clips(test.base_clips), [base_sets]), clips(test.novel_clips)
    video, text = NaiveVideo(model.video, shape.frames).to(device).eval(), NaiveText(model.text).to(device).eval()
    rows = []
    for mode, parts in {
        shape.name: [base_part, (novel, novel_sets)],
        f"{shape.name}_srt": [(novel, novel_sets[1:])],
    }.items():
        times = timed(model, video, text, parts, device, once=shape.full and device == "cpu")
        print(mode, {name: f"{sorted(values)[len(values) // 2] / 1e3:.0f} ms" for name, values in times.items()})
        rows += [
            Row("evaluation", name, mode, "time", "us", "frames", shape.frames, values, asdict(test))
            for name, values in times.items()
        ]
    return rows


def timed(
    model: DualEncoder, video: NaiveVideo, text: NaiveText, parts: list[Part], device: str, once: bool
) -> dict[str, list[float]]:
    """Microseconds of every variant, in turns; `once`: a call of each, not warmed up, where one takes minutes."""
    calls = {
        "naive": lambda: naive(video, text, parts, once=False),
        "videos_once": lambda: naive(video, text, parts, once=True),
        "ours": lambda: ours(model, parts),
    }
    if once:
        return {name: [one_time(call, None)] for name, call in calls.items()}
    return time_in_turns(calls, device, budget_s=30, least=3, most=20)


def main() -> None:
    """Measure and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tests", nargs="*", help="names of shapes; all by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "eval.csv")
    options = parser.parse_args()
    for test in TESTS[options.device]:
        if not options.tests or test.shape.name in options.tests:
            append(options.output, measure(test, options.device), options.device)


if __name__ == "__main__":
    main()
