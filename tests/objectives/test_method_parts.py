"""What differs between methods: losses, spotting, prompts, and the order in which settings win."""

import dataclasses

import numpy as np
import pytest
import torch
from ace_kernels import ConceptLayout
from torch.nn.functional import cosine_similarity, normalize

from ace_dist.concepts import Action, SynonymTrees
from ace_dist.config import SimilarityConfig, TextConfig, VideoConfig, config_dir, load_config
from ace_dist.evaluate.metrics import accuracy, fuse_views, macro_f1, random_baseline
from ace_dist.models.build import build_model
from ace_dist.models.dual_encoder import build_text_tower
from ace_dist.models.similarity import Similarity, Spotting
from ace_dist.models.text_clip import ClipTextTower, PromptedClipTextTower
from ace_dist.models.text_features import TextFeatureCache
from ace_dist.models.tokenizer import bpe_ids
from ace_dist.models.vit import ImageTower
from ace_dist.objectives import build_objective
from ace_dist.objectives.bike import symmetric_kl
from ace_dist.utils.errors import ConfigError, ModelError

PHRASES = ["spin block", "lay down the side panel", "hammer pin"]


def text_config(**changes):
    return TextConfig(**{"width": 32, "depth": 3, "heads": 2, "embed_dim": 16, **changes})


def image_tower(**changes):
    settings = {"tower": "vit", "width": 32, "depth": 3, "heads": 2, "patch": 8, "image_size": 16, "frames": 4,
                "embed_dim": 16, "drop_path": 0.0, "trained_blocks": 0}  # fmt: skip
    return ImageTower(VideoConfig(**{**settings, **changes})).eval()


# -------------------------------------------------------------------------------------------------------- BIKE
def test_symmetric_kl_by_hand():
    """Clips 0 and 2 show one class: each has half of the other's text as its target, in both directions."""
    scores, labels = torch.randn(3, 3, dtype=torch.float64), torch.tensor([4, 1, 4])
    target = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]], dtype=torch.float64)
    total = 0.0
    for table in (scores, scores.T):
        for i in range(3):
            q = table[i].exp() / table[i].exp().sum()
            total += sum(p * (torch.log(p) - torch.log(q[j])) for j, p in enumerate(target[i]) if p > 0) / 3
    assert symmetric_kl(scores, labels) == pytest.approx(float(total) / 2)


@pytest.mark.parametrize("normalise", [True, False])
def test_spotting_by_hand(tmp_path, normalise):
    """Frames weighed for each phrase, the five nearest attributes beside them, averaged over a class's phrases.

    BIKE's authors take the product of the pooled frames, which are shorter than 1, with the unit text embedding.
    """
    (tmp_path / "words.txt").write_text("# a comment\n" + "\n".join(f"attribute {i}" for i in range(8)))
    settings = SimilarityConfig(spotting=True, attributes=str(tmp_path / "words.txt"), attribute_share=0.3, top=5)
    settings.normalise_pooled = normalise
    spotting = Spotting(settings, 16)
    spotting.attributes.copy_(normalize(torch.randn(8, 16), dim=1))
    video, table = torch.randn(3, 4, 16), torch.randn(4, 16)
    rows = torch.tensor([2, 0, 3])
    (scores,) = spotting(video, table, ConceptLayout.build([[0, 2, 3]], [rows], height=len(table)), 0.05)
    for b in range(3):
        frames = normalize(video[b], dim=1)
        chosen = sorted(range(8), key=lambda a: -float(frames.mean(0) @ spotting.attributes[a]))[:5]
        said = spotting.attributes[chosen].mean(0)
        cosines = []
        for row in rows:
            weights = torch.stack([cosine_similarity(f, table[row], 0) for f in frames]).div(0.01).softmax(0)
            pooled = sum(w * f for w, f in zip(weights, frames, strict=True))
            spotted = cosine_similarity(pooled, table[row], 0) if normalise else pooled @ normalize(table[row], dim=0)
            cosines.append(0.7 * spotted + 0.3 * cosine_similarity(said, table[row], 0))
        expected = torch.stack([(cosines[0] + cosines[1]) / 2, cosines[2]]) / 0.05
        assert torch.allclose(scores[b], expected, atol=1e-4)


def test_attribute_files(tmp_path):
    for content, told in ((None, "does not exist"), ("# nothing\n", "holds no attribute")):
        path = tmp_path / "words.txt"
        if content:
            path.write_text(content)
        with pytest.raises(ModelError, match=told):
            Spotting(SimilarityConfig(spotting=True, attributes=str(path)), 16)


def test_a_learned_temperature_starts_as_the_given_one():
    """And its gradient is that of the logits' scale."""
    plain, learned = Similarity(SimilarityConfig()), Similarity(SimilarityConfig(learn_temperature=True))
    layout = ConceptLayout.build([[0, 2, 4]], [range(4)])
    arguments = (torch.randn(3, 16), torch.randn(4, 16), layout, 0.05)
    (ours,), (theirs,) = learned(*arguments), plain(*arguments)
    assert torch.equal(ours, theirs)
    (gradient,) = torch.autograd.grad(ours.sum(), [learned.log_scale])
    assert float(gradient) == pytest.approx(float(theirs.sum()), rel=1e-4)


# ----------------------------------------------------------------------------------------------------- prompts
@torch.no_grad()
def test_prompts_are_averaged_before_normalising():
    """ProcedureVRL's rule: the mean of the sentences' raw embeddings, live and from the cache."""
    prompts = ["a photo of {}.", "a video of a person {}.", "{}"]
    tower = ClipTextTower(text_config(prompts=prompts)).eval()
    single = ClipTextTower(text_config()).eval()
    single.load_state_dict(tower.state_dict())
    expected = torch.stack([single([prompt.replace("{}", phrase) for prompt in prompts]).mean(0) for phrase in PHRASES])
    assert torch.allclose(tower(PHRASES), expected, atol=1e-5)
    cache = TextFeatureCache(tower, PHRASES)
    assert torch.allclose(cache.encode(cache.indices(PHRASES[::-1] + PHRASES[:1])), expected[[2, 1, 0, 0]], atol=1e-5)


@torch.no_grad()
def test_learned_text_prompts_replace_tokens_layer_by_layer():
    """Against CLIP's own tower with the words `x x` in the place of the prompts, when the prompts are those words'."""
    tower = PromptedClipTextTower(text_config(prompt_tokens=2, prompt_depth=1)).eval()
    plain = ClipTextTower(text_config()).eval()
    plain.load_state_dict({key: tensor for key, tensor in tower.state_dict().items() if key != "prompts"})
    word = bpe_ids(["x"])[0, 1]
    tower.prompts.copy_(plain.text_model.embeddings.token_embedding.weight[word].expand(1, 2, -1))
    assert torch.allclose(tower(PHRASES), plain([f"x x {phrase}" for phrase in PHRASES]), atol=1e-5)
    deep = PromptedClipTextTower(text_config(prompt_tokens=2, prompt_depth=3)).eval()
    deep.load_state_dict({**tower.state_dict(), "prompts": torch.cat([tower.prompts, torch.zeros(2, 2, 32)])})
    assert (deep(PHRASES) - tower(PHRASES)).abs().max() > 1e-4


def test_only_prompts_train_and_every_one_gets_a_gradient():
    tower = build_text_tower(text_config(prompt_tokens=2, prompt_depth=3, train_projection=False))
    image = image_tower(prompt_tokens=3, prompt_depth=2).train()
    tower(PHRASES).square().sum().backward()
    image(torch.randn(2, 2, 3, 16, 16)).square().sum().backward()
    for module in (tower, image):
        assert [name for name, p in module.named_parameters() if p.requires_grad] == ["prompts"]
        assert (module.prompts.grad.abs().amax((1, 2)) > 0).all()


def test_prompts_that_do_not_fit():
    with pytest.raises(ModelError, match=r"every prompt must have one \{\}"):
        ClipTextTower(text_config(prompts=["a photo"]))
    with pytest.raises(ModelError, match="trained_layers=0"):
        build_text_tower(text_config(prompt_tokens=2, trained_layers=1))
    with pytest.raises(ModelError, match="leaves no room"):
        build_text_tower(text_config(prompt_tokens=72))(["take the small red cup"])


# ------------------------------------------------------------------------------------------------- image tower
@torch.no_grad()
def test_frames_are_averaged_or_kept():
    video = torch.randn(2, 4, 3, 16, 16)
    mean, kept = image_tower(), image_tower(pooling="frames", temporal_layers=1)
    assert not kept.load_state_dict(mean.state_dict(), strict=False).unexpected_keys
    single = torch.stack([mean(video[:, t : t + 1]) for t in range(4)], dim=1)
    assert torch.allclose(mean(video), single.mean(1), atol=1e-5)
    assert kept(video).shape == (2, 4, 16) and (kept(video) - single).abs().max() > 1e-3


def test_frozen_blocks_store_nothing():
    """Gradients start at the first trained block, and frozen parts stay in eval mode."""
    tower = image_tower(trained_blocks=1).train()
    tower(torch.randn(1, 2, 3, 16, 16)).sum().backward()
    graded = {name.split(".")[1] for name, p in tower.named_parameters() if p.grad is not None}
    assert graded == {"2"} and not tower.blocks[0].training and tower.blocks[2].training


# -------------------------------------------------------------------------------------------- random, fusion, configs
def test_random_against_guessing_many_times():
    """Expected accuracy and macro F1 against the mean of many simulated runs, on uneven label counts."""
    rng = np.random.default_rng()
    labels = np.repeat(np.arange(5), [400, 250, 200, 100, 50])
    runs = [rng.integers(0, 5, len(labels)) for _ in range(400)]
    expected = random_baseline(labels, 5)
    assert np.mean([accuracy(labels, guess) for guess in runs]) == pytest.approx(expected["accuracy"], abs=0.3)
    assert np.mean([macro_f1(labels, guess, 5) for guess in runs]) == pytest.approx(expected["f1"], abs=0.3)


def test_the_largest_score_of_the_views_counts():
    values = [[1.0, 5.0], [3.0, 2.0]]
    fused = fuse_views(values, ["a", "a"], [0, 0], [0, 1], views_per_sample=2, how="logit_max")
    assert fused.values.tolist() == [[3.0, 5.0]]


FLAGS = ("leaf_augmentation", "shadow_negatives", "fixed_labels", "random_labels")
METHODS = {  # objective, FLAGS, text layers and projection that train; None: as the experiment says
    "ace": ("concept", (True, True, True, True), (0, True)),
    "ace_no_leaf": ("concept", (False, True, True, True), (0, True)),
    "ace_no_shadow": ("concept", (True, False, True, True), (0, True)),
    "ace_no_fixed": ("concept", (True, True, False, True), (0, True)),
    "ace_no_random": ("concept", (True, True, True, False), (0, True)),
    "ace_sigmoid": ("sigmoid", (True, True, True, True), (0, True)),
    "procvlr": ("concept", (False, False, True, False), (0, False)),
    "vifi_ft": ("label", (False, False, True, False), ("all", True)),
    "vifi_pr": ("label", (False, False, True, False), (0, False)),
    "text4vis": ("label", (False, False, True, False), (0, False)),
    "lavila": ("label", (False, False, True, False), ("all", True)),
    "bike": ("bike", (False, False, True, False), (0, False)),
    "random": ("concept", (False, False, True, False), (0, True)),
}


def test_every_method_has_a_row_here():
    assert METHODS.keys() == {path.stem for path in (config_dir() / "method").glob("*.yaml")}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("experiment", ["demo", "ata_ace", "gtea_ace", "ikea_ace"])
def test_a_method_is_what_its_file_says(experiment, method):
    """Objective, labels and what trains of the text tower, as the paper compares them; recipes win over experiments."""
    config = load_config([f"experiment={experiment}", f"method={method}", "training.lr_video=0.123"])
    objective, flags, (layers, projection) = METHODS[method]
    assert config.method.name == ("ace" if method.startswith("ace_no") else method)
    assert (config.method.objective, tuple(getattr(config.method, flag) for flag in FLAGS)) == (objective, flags)
    text = config.model.text
    assert (text.trained_layers, text.train_projection) == (text.depth if layers == "all" else layers, projection)
    chance = method == "random"
    assert (config.evaluation.scorer, config.model.init, config.training.max_steps) == (
        ("chance", "random", 0) if chance else ("similarity", "weights", None)
    )
    assert config.training.lr_video == 0.123  # the command line wins over all
    assert ("/weights/tabletop/" in (config.model.video.weights or "")) == (experiment == "demo")
    if method == "vifi_ft":
        assert config.training.optimizer == "adamw" and config.training.epochs == (15 if experiment == "demo" else 11)
        assert config.model.video.trained_blocks == config.model.video.depth


def test_the_command_line_wins_over_a_method():
    """What was discarded in silence once: averaged labels, a trained text tower and steps of a method without them."""
    config = load_config(
        ["method=procvlr", "method.leaf_augmentation=true", "model.text.train_projection=true", "training.max_steps=3"]
    )
    assert config.method.leaf_augmentation and config.model.text.train_projection and config.training.max_steps == 3
    turns = {"spin": {"spin": ["spin", "turn"], "turn": ["turn", "spin"]}}
    trees = SynonymTrees(turns | {"lift": {"lift": ["lift", "raise"], "raise": ["raise", "lift"]}})
    model = build_model(dataclasses.replace(config.model, init="random"), 0)
    objective = build_objective(config, model, [Action("spin", "block"), Action("lift", "pin")], trees)
    assert all(len(phrases) == 2 for phrases in objective.sampler.draw(0).fixed)


@pytest.mark.parametrize("method", ["vifi_ft", "bike"])
@pytest.mark.parametrize("flag", ["random_labels", "shadow_negatives"])
def test_what_an_objective_cannot_do_is_refused(method, flag):
    with pytest.raises(ConfigError, match=f"method.{flag}=true does not go with method.objective="):
        load_config([f"method={method}", f"method.{flag}=true"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method=ace", "model.similarity.learn_temperature=true"], "learn_temperature=true does not go with"),
        (["method=procvlr", "model.similarity.learn_temperature=true"], "method.objective=concept, whose loss is on"),
        (
            ["method=ace", "model.video.tower=vit", "model.video.pooling=frames", "model.similarity.spotting=true"],
            "model.similarity.spotting=true does not go with method.objective=concept",
        ),
        (["method=ace", "method.label_smoothing=0.1"], "is for method.objective=label, not concept; set it to 0"),
        (["method=ace_sigmoid", "method.label_smoothing=0.1"], "is for method.objective=label, not sigmoid"),
        (["method=bike", "method.label_smoothing=0.1"], "is for method.objective=label, not bike"),
        (["method=vifi_ft", "method.label_smoothing=1.5"], r"method.label_smoothing=1.5 must lie in \[0, 1\)"),
    ],
)
def test_what_a_loss_does_not_read_is_refused(settings, words):
    """Else a learned temperature gets no gradient, spotting ends in the first forward pass, smoothing does nothing."""
    with pytest.raises(ConfigError, match=words):
        load_config(settings)


def test_a_name_alone_does_not_choose_a_method():
    with pytest.raises(ConfigError, match="method=NAME"):
        load_config(["method.name=procvlr"])


def test_vifi_pr_without_prompts_trains_nothing():
    """No prompt token, no frozen part that could train instead: the engine refuses it and names the setting."""
    config = load_config(["method=vifi_pr", "model.video.prompt_tokens=0", "model.text.prompt_tokens=0"])
    model = build_model(dataclasses.replace(config.model, init="random"), 0)
    assert not any(model.trainable_parameters().values())
