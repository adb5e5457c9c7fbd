"""Protects the narrated corpus: its shares are those of the settings, and its words are those of the trees."""

from collections import Counter

import numpy as np
import pytest

from ace_dist.concepts import SynonymTrees, load_srt
from ace_dist.config import assets_dir
from ace_dist.utils.errors import ConfigError
from ace_dist.worlds.tabletop.corpus import narrated_clips, render_narrated, word_shares
from ace_dist.worlds.tabletop.world import BASE_ACTIONS, NOVEL_ACTIONS, OBJECTS, VERBS, CorpusConfig, TabletopConfig

TREES = SynonymTrees.load(assets_dir() / "synonyms" / "tabletop.json")
WORDS = {verb: TREES.children(verb) for verb in VERBS}


def fresh(**corpus: object) -> TabletopConfig:
    seed = int(np.random.default_rng().integers(2**31))
    return TabletopConfig(seed=seed, corpus=CorpusConfig(**corpus))  # type: ignore[arg-type]


def test_shares_follow_the_tail() -> None:
    """With no noise, the k-th word of a verb is said with the k-th share (binomial bounds, 5 sigma)."""
    world = fresh(clips=6000, synonym_tail=[0.7, 0.2, 0.1], verb_noise=0.0, verb_missing=0.0)
    clips = narrated_clips(WORDS, world)
    said = Counter((clip.verb, clip.said_verb) for clip in clips)
    for verb, shares in word_shares(WORDS, world).items():
        assert list(shares.values()) == pytest.approx([0.7, 0.2, 0.1])
        for word, share in shares.items():
            assert abs(said[verb, word] - 250 * share) < 5 * (250 * share * (1 - share)) ** 0.5


def test_noise_wrong_verbs_and_missing_verbs_but_reliable_objects() -> None:
    world = fresh(clips=4000, synonym_tail=[1.0], verb_noise=0.3, verb_missing=0.2)
    clips = narrated_clips(WORDS, world)
    shares = word_shares(WORDS, world)
    said = [clip for clip in clips if clip.said_verb]
    right = sum(clip.said_verb in shares[clip.verb] for clip in said) / len(said)
    # a wrong verb may share its leading word with the right one, so the share of right words is a little above 0.7
    assert 0.66 < right < 0.78
    assert abs(len(said) / len(clips) - 0.8) < 0.04
    assert all(clip.text.endswith(clip.object) for clip in clips)


def test_corpus_is_a_function_of_seed_and_index() -> None:
    """Part of the corpus equals the same part of the whole, in narration and in pixels, in one process or two."""
    world = fresh(clips=64)
    whole, part = narrated_clips(WORDS, world), narrated_clips(WORDS, world, 6, start=20)
    assert whole[20:26] == part
    np.testing.assert_array_equal(
        render_narrated(part, world, 4, 2.0), render_narrated(whole[18:26], world, 4, 2.0, workers=2)[2:]
    )


def test_every_verb_and_object_is_shown() -> None:
    clips = narrated_clips(WORDS, fresh(clips=len(VERBS) * len(OBJECTS)))
    assert {(clip.verb, clip.object) for clip in clips} == {(verb, name) for verb in VERBS for name in OBJECTS}


def test_a_verb_without_words_is_named() -> None:
    with pytest.raises(ConfigError, match="swing"):
        word_shares({verb: words for verb, words in WORDS.items() if verb != "swing"}, TabletopConfig())


def test_trees_have_the_promised_size_and_a_real_second_order() -> None:
    """8 children with 6 of their own each; were those sets equal, leaf averaging would hide which child was drawn."""
    for root in VERBS:
        children = TREES.children(root)
        assert len(children) == 8 and children[0] == root
        second = [TREES.children(root, child) for child in children]
        assert all(len(words) == 6 and words[0] == child for child, words in zip(children, second, strict=True))
        assert len({frozenset(words) for words in second}) == 8
        assert len({word for words in second for word in words}) >= 18


def test_srt_runs_use_first_order_synonyms_of_the_novel_actions() -> None:
    runs = load_srt(assets_dir() / "srt" / "tabletop.json")
    assert len(runs) == 10
    novel = {f"{verb} {name}": (verb, name) for verb, name in NOVEL_ACTIONS}
    assert runs[0] == {label: label for label in novel}
    for run in runs:
        assert set(run) == set(novel)
        assert len(set(run.values())) == len(run), "two classes under one label could not be told apart"
        for label, (verb, name) in novel.items():
            assert run[label].removesuffix(" " + name) in TREES.children(verb)
    assert not set(BASE_ACTIONS) & set(NOVEL_ACTIONS)
