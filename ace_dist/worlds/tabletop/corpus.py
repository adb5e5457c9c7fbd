"""The narrated corpus of the tabletop world: which clip shows what, and the one sentence that was said about it.

It has the flaws of narrated web video that the method is about: a clip is narrated once, a verb's synonyms have a long
tail, verbs are often wrong or missing, while objects are reliable.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ace_dist.utils.errors import ConfigError
from ace_dist.worlds.tabletop.rendering import render
from ace_dist.worlds.tabletop.world import (
    OBJECTS,
    SEED_CORPUS,
    SEED_NARRATION,
    VERBS,
    TabletopConfig,
    draw_person,
    draw_style,
)

PEOPLE = 64  # narrators; their numbers do not overlap with those of the workbench
PEOPLE_FROM = 1000
TEMPLATES = ("{verb} {object}", "{verb} the {object}", "now {verb} the {object}")
TEMPLATE_SHARES = (0.7, 0.2, 0.1)


@dataclass(frozen=True)
class NarratedClip:
    """Clip `index` of the corpus: what it shows, and what was said ("" in `said_verb`: the verb was left out)."""

    index: int
    verb: str
    object: str
    said_verb: str
    text: str


def word_shares(vocabulary: Mapping[str, Sequence[str]], world: TabletopConfig) -> dict[str, dict[str, float]]:
    """How often each verb is narrated with each word; words with no share are never said of it.

    Which of a verb's words leads is drawn per verb: the word that annotators chose as the label need not be the one
    that narrators use most. `vocabulary` lists first the words that share the head of `synonym_tail`, and those of the
    tail after them; the draw permutes each of the two. Raises `ConfigError` for a verb without words.
    """
    missing = [verb for verb in VERBS if not vocabulary.get(verb)]
    if missing:
        raise ConfigError(f"dataset.synonyms has no words for {', '.join(missing)}: every tabletop verb needs a tree")
    tail = np.asarray(world.corpus.synonym_tail, dtype=np.float64)
    shares = {}
    for number, verb in enumerate(VERBS):
        rng = np.random.default_rng([world.seed, SEED_NARRATION, number])
        words = [str(word) for word in rng.permutation(list(vocabulary[verb]))]
        weights = tail[: len(words)] / tail[: len(words)].sum()
        shares[verb] = {word: float(w) for word, w in zip(words, weights, strict=False) if w > 0}
    return shares


def narrated_clips(
    vocabulary: Mapping[str, Sequence[str]], world: TabletopConfig, count: int | None = None, start: int = 0
) -> list[NarratedClip]:
    """Clips `start` to `start + count` of the corpus (all of it by default), each a function of (seed, index) alone."""
    world.check()
    shares = word_shares(vocabulary, world)
    count = world.corpus.clips if count is None else count
    clips = []
    for index in range(start, start + count):
        rng = np.random.default_rng([world.seed, SEED_NARRATION, SEED_CORPUS, index])
        verb, name = VERBS[index % len(VERBS)], OBJECTS[(index // len(VERBS)) % len(OBJECTS)]
        meant = verb
        if rng.uniform() < world.corpus.verb_noise:
            meant = str(rng.choice([other for other in VERBS if other != verb]))
        said = str(rng.choice(list(shares[meant]), p=list(shares[meant].values())))
        text = str(rng.choice(TEMPLATES, p=TEMPLATE_SHARES)).format(verb=said, object=name)
        if rng.uniform() < world.corpus.verb_missing:
            said, text = "", f"the {name}"
        clips.append(NarratedClip(index, verb, name, said, text))
    return clips


def render_narrated(
    clips: Sequence[NarratedClip], world: TabletopConfig, frames: int, seconds: float, workers: int = 1
) -> NDArray[np.uint8]:
    """Windows of `frames` frames over `seconds`, one a clip: uint8 [N, frames, size, size, 3]."""
    one = partial(_render_one, world=world, frames=frames, seconds=seconds)
    if workers <= 1:
        return np.stack([one(clip) for clip in clips])
    with ProcessPoolExecutor(workers) as pool:
        return np.stack(list(pool.map(one, clips, chunksize=64)))


def _render_one(clip: NarratedClip, world: TabletopConfig, frames: int, seconds: float) -> NDArray[np.uint8]:
    """One window, placed at random within the segment as far as that is long enough."""
    rng = np.random.default_rng([world.seed, SEED_CORPUS, clip.index])
    person = draw_person(world.seed, PEOPLE_FROM + int(rng.integers(PEOPLE)), 0.0)
    style = draw_style(rng, person, world, 0.0)
    begin, end = style.segment
    slack = (end - begin) - seconds
    start = begin + slack * (rng.uniform() if slack > 0 else 0.5)
    times = start + (np.arange(frames) + 0.5) * seconds / frames
    return render(clip.verb, clip.object, style, times, world.size, world.motion_noise)
