"""The TimeSformer: its numbers against Hugging Face's, its freezing, its memory, and its stochastic depth."""

import secrets

import pytest
import torch
from transformers import TimesformerConfig, TimesformerModel

from ace_dist.config import VideoConfig
from ace_dist.models import attention, recompute, timesformer
from ace_dist.models.timesformer import TimeSformer
from ace_dist.models.video import resize_positions, resize_times
from ace_dist.utils.errors import ModelError

# Official resize of 8 rows, as torch's nearest interpolation gives it (source index floor(i * 8 / T)).
NEAREST = {
    15: [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7],
    25: [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7],
    30: [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7],
}


def tiny(**changes):
    return VideoConfig(
        **{
            "width": 128,
            "depth": 4,
            "heads": 2,
            "patch": 8,
            "image_size": 32,
            "embed_dim": 32,
            "trained_blocks": 2,
            **changes,
        }
    )


def randomised(config):
    """A model none of whose parameters is zero, so that no branch can go wrong unseen."""
    model = TimeSformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def hugging_face(model, frames, image_size):
    """transformers' TimesformerModel with the same weights; its layers need `num_frames` to be the real T."""
    config = model.config
    reference = TimesformerModel(
        TimesformerConfig(
            image_size=image_size,
            patch_size=config.patch,
            num_frames=frames,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=int(config.width * config.mlp_ratio),
            layer_norm_eps=1e-6,
        )
    ).eval()
    fixed = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "time_embed": "embeddings.time_embeddings",
        "norm": "layernorm",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
    }
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.qkv": "attention.attention.qkv",
        "attn.proj": "attention.output.dense",
        "temporal_norm1": "temporal_layernorm",
        "temporal_attn.qkv": "temporal_attention.attention.qkv",
        "temporal_attn.proj": "temporal_attention.output.dense",
        "temporal_fc": "temporal_dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    state = {}
    for key, value in model.state_dict().items():
        stem, dot, leaf = key.rpartition(".") if key.endswith(("weight", "bias")) else (key, "", "")
        if stem.startswith("blocks."):
            _, index, part = stem.split(".", 2)
            state[f"encoder.layer.{index}.{parts[part]}.{leaf}"] = value
        elif stem != "head":
            state[fixed[stem] + dot + leaf] = value
    rows = torch.tensor(NEAREST.get(frames, range(frames)))
    state["embeddings.time_embeddings"] = state["embeddings.time_embeddings"][:, rows]
    reference.load_state_dict(state, strict=True)
    return reference


@pytest.mark.parametrize("frames", [8, 30])
def test_equals_hugging_face(frames):
    model = randomised(tiny()).eval()
    video = torch.randn(2, frames, 3, 32, 32)
    with torch.no_grad():
        expected = model.head(hugging_face(model, frames, 32)(video).last_hidden_state[:, 0])
        assert (model(video) - expected).abs().max() < 1e-5


def test_other_image_size_equals_hugging_face():
    """Position embeddings of a 4x4 grid serve a 6x6 one, nearest in both axes, as transformers resizes them."""
    model = randomised(tiny(depth=2)).eval()
    video = torch.randn(1, 8, 3, 48, 48)
    grid = model.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=(6, 6), mode="nearest").flatten(2).transpose(1, 2)
    larger = randomised(tiny(depth=2, image_size=48))
    larger.load_state_dict({**model.state_dict(), "pos_embed": torch.cat([model.pos_embed[:, :1], resized], 1)})
    with torch.no_grad():
        expected = model.head(hugging_face(larger, 8, 48)(video).last_hidden_state[:, 0])
        assert (model(video) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("frames", NEAREST)
def test_nearest_time_resize(frames):
    embed = torch.randn(1, 8, 5)
    assert torch.equal(resize_times(embed, frames), embed[:, NEAREST[frames]])


def test_linear_time_resize():
    """By hand, for 2 rows to 4: sample points -0.25, 0.25, 0.75, 1.25, clamped at the ends."""
    embed = torch.tensor([[[0.0], [1.0]]])
    assert torch.allclose(resize_times(embed, 4, "linear").flatten(), torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_positions_keep_cls_when_resized():
    embed = torch.randn(1, 5, 3)
    assert torch.equal(resize_positions(embed, 16)[:, 0], embed[:, 0])
    assert torch.equal(resize_positions(embed, 4), embed)


def test_full_size_counts():
    """Sums over the official key table: 121,258,752 without head; the last three blocks hold 30,127,104 of them."""
    with torch.device("meta"):
        model = TimeSformer(VideoConfig())
    named = dict(model.named_parameters())
    assert len(named) == 249
    assert sum(p.numel() for name, p in named.items() if not name.startswith("head.")) == 121_258_752
    trained = {name for name, p in named.items() if p.requires_grad}
    assert sum(named[name].numel() for name in trained) == 30_127_104
    assert {name.split(".")[1] for name in trained} == {"9", "10", "11"}


@pytest.mark.parametrize(
    ("changes", "also_trained"),
    [
        ({"trained_blocks": 0}, set()),
        ({"trained_blocks": 4}, {"cls_token", "pos_embed", "time_embed", "patch_embed"}),
        ({"train_norm": True, "train_head": True}, {"norm", "head"}),
        ({"train_time_embed": True}, {"time_embed"}),
    ],
)
def test_what_trains_gets_gradients_and_nothing_else(changes, also_trained):
    config = tiny(drop_path=0.0, **changes)
    model = randomised(config).train()
    blocks = {str(index) for index in range(4 - config.trained_blocks, 4)}
    output = model(torch.randn(2, 8, 3, 32, 32)).square().sum()
    if output.requires_grad:
        output.backward()
    for name, parameter in model.named_parameters():
        part = name.split(".")
        trains = part[1] in blocks if part[0] == "blocks" else part[0] in also_trained
        assert parameter.requires_grad == trains, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trains, name


def stored_bytes(model, video, monkeypatch, again):
    """Bytes that a forward pass keeps for the backward pass, parameters aside, each piece of memory once; its output.

    Where `again` is false, `recompute` stores all that its function does.
    """
    kept, parameters = {}, {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, or its address would serve again
        return tensor

    def recompute_and_note(function, *inputs):
        if torch.is_grad_enabled() and again:
            return recompute.recompute(function, *map(note, inputs))
        return function(*inputs)

    for module in (timesformer, attention):
        monkeypatch.setattr(module, "recompute", recompute_and_note)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(video)
    return sum(size for size, _ in kept.values()), output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputation_changes_no_bit_and_stores_little(dtype, monkeypatch):
    """A trained block stores its three residual states, two qkv, two attention outputs and the MLP's hidden state."""
    model, video = randomised(tiny(trained_blocks=3)).to(dtype).train(), torch.randn(2, 8, 3, 32, 32).to(dtype)
    model.set_step(3, 7, 0, 1)
    found = {}
    for again in (True, False):
        size, output = stored_bytes(model, video, monkeypatch, again)
        gradients = torch.autograd.grad(output.square().sum(), [p for p in model.parameters() if p.requires_grad])
        found[again] = size, output, *gradients
    assert all(torch.equal(*pair) for pair in zip(found[True][1:], found[False][1:], strict=True))
    state = 2 * 8 * 16 * 128 * dtype.itemsize  # [B,P,T,D]; cls, one token in 17, comes on top
    whole, last = 3 + 2 * 3 + 2 + 4, 2 + 3 + 1 + 2  # in the last block, cls alone has a query and enters the MLP
    assert found[True][0] < 1.1 * (2 * whole + last) * state
    assert found[True][0] < 0.75 * found[False][0]


def test_frozen_blocks_store_nothing_and_change_no_gradient():
    """Same gradients of the trained blocks as a backward pass through everything; no graph below them."""
    config = tiny(drop_path=0.0)
    model, full = randomised(config), TimeSformer(tiny(drop_path=0.0, trained_blocks=4))
    full.load_state_dict(model.state_dict())
    video, inputs, saved, saved_before = torch.randn(2, 8, 3, 32, 32), [], [], []
    for block in model.blocks:
        block.temporal_norm1.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model.blocks[2].register_forward_pre_hook(lambda *_: saved_before.append(len(saved)))

    def note(tensor):
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model.train()(video)
    assert saved_before == [0] and saved
    assert [tensor.requires_grad for tensor in inputs] == [False, False, False, True]
    output.square().sum().backward()
    full.train()(video).square().sum().backward()
    expected = dict(full.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5)


def test_train_leaves_frozen_parts_in_eval():
    model = TimeSformer(tiny()).train()
    assert [block.training for block in model.blocks] == [False, False, True, True]
    assert not model.norm.training and not model.head.training and not model.patch_embed.training
    assert all(not module.training for module in model.blocks[0].modules())
    assert not any(block.training for block in model.eval().blocks)


def test_drop_path_is_the_same_on_any_number_of_ranks():
    """One rank with 8 clips, and two ranks with 4 each, drop the same sequences of the same clips."""
    model = randomised(tiny(drop_path=0.6)).train()
    video, step = torch.randn(8, 8, 3, 32, 32), secrets.randbelow(1000)
    with torch.no_grad():
        model.set_step(3, step, 0, 1)
        whole = model(video)
        halves = []
        for rank in (0, 1):
            model.set_step(3, step, rank, 2)
            halves.append(model(video[4 * rank : 4 * rank + 4]))
        assert torch.allclose(whole, torch.cat(halves), atol=1e-5)
        assert not torch.allclose(whole, model.eval()(video), atol=1e-3)
        model.train().set_step(3, step + 1, 0, 1)
        assert not torch.allclose(whole, model(video), atol=1e-3)


def test_drop_path_scale_and_rate():
    """Kept entries are 1 / keep, and a share of about `keep` is kept; rates grow linearly with depth."""
    model = TimeSformer(tiny(depth=3, trained_blocks=3, drop_path=0.5)).train()
    assert [block.drop_rate for block in model.blocks] == pytest.approx([0.0, 0.25, 0.5])
    patches = torch.empty(400, 16, 8, model.config.width)
    kept = model.drop_masks(400, 16, 8)
    assert len(kept) == 2  # the first block drops nothing
    for block, keep in zip(kept, (0.75, 0.5), strict=True):
        masks = timesformer.split_masks(block, patches)
        assert masks.temporal.shape == (400, 16, 1, 1) and masks.spatial.shape == (400, 8, 1, 1)
        for mask in masks:
            assert bool(((mask == 0) | ((mask - 1 / keep).abs() < 1e-6)).all())
        # standard error of the share: sqrt(keep (1 - keep) / 6400) < 0.0063; eight of them
        assert abs(masks.temporal.count_nonzero() / masks.temporal.numel() - keep) < 0.05


def test_drop_path_without_a_step_uses_the_global_generator():
    model = randomised(tiny(drop_path=0.6)).train()
    video = torch.randn(2, 8, 3, 32, 32)
    torch.manual_seed(5)
    first = model(video)
    torch.manual_seed(5)
    assert torch.equal(model(video), first)


@pytest.mark.parametrize(
    ("shape", "named"),
    [((1, 8, 3, 32, 40), "loader.crop"), ((1, 8, 3, 36, 36), "model.video.patch"), ((8, 3, 32, 32), "B,T,3,S,S")],
)
def test_wrong_clips_are_refused(shape, named):
    with pytest.raises(ModelError, match=named):
        TimeSformer(tiny(depth=2))(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"heads": 3}, "model.video.heads"),
        ({"image_size": 36}, "model.video.image_size"),
        ({"trained_blocks": 5}, "model.video.trained_blocks"),
        ({"drop_path": 1.0}, "model.video.drop_path"),
    ],
)
def test_wrong_settings_are_refused(changes, named):
    with pytest.raises(ModelError, match=named):
        TimeSformer(tiny(**changes))


@pytest.mark.parametrize("again", ["none", "norms"])
def test_blocks_are_traced_whole(again):
    """One graph a block, with stochastic depth, in training and evaluation; a second such pass compiles nothing."""
    model = randomised(tiny(trained_blocks=2, drop_path=0.3, recompute=again)).train()
    video = torch.randn(2, 8, 3, 32, 32)
    model.set_step(3, 7, 0, 1)
    expected = model(video)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(dynamic=False, fullgraph=True, backend="eager")
        block.last = torch.compile(block.last, dynamic=False, fullgraph=True, backend="eager")
    assert torch.equal(model(video), expected)
    with torch.no_grad():
        model.eval()(video)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        model(video)
        model.train()
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(model(video), expected)
