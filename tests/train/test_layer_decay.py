"""`training.layer_decay`: rates fall from layer to layer in every tower, whatever its library calls its parts."""

import pytest
from image_text_models import small_model
from small_video_models import video_model_settings

from ace_dist.config import load_config
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.train.engine import layer_factors

DECAY = 0.5
MINILM = ("model.text.tower=minilm", "model.text.width=384", "model.text.depth=6", "model.text.heads=12")


def demo(*settings):
    config = load_config(["experiment=demo", "model.init=random", *settings])
    return config.model


MODELS = {
    "timesformer": demo,
    "lora": lambda: demo("model.video.lora_rank=2", "model.text.lora_rank=2", "model.text.trained_layers=1"),
    "minilm": lambda: demo(*MINILM),
    "lavila": lambda: demo("method=lavila"),
    "text4vis": lambda: demo("method=text4vis"),
    "clip_b16": lambda: small_model("clip_b16", temporal="adapter", trained_blocks=2),
    "pe_core_b16": lambda: small_model("pe_core_b16", temporal="transformer", temporal_layers=1),
    "videomae_b16": lambda: video_model_settings("videomae_b16"),
    "vjepa2_l16": lambda: video_model_settings("vjepa2_l16"),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_rates_halve_from_layer_to_layer(name):
    """The last layer and what follows it have 1, what comes before the first layer half of that layer's."""
    config = MODELS[name]()
    model = DualEncoder(config.video, config.text)
    for tower, layers in ((model.video, model.video.blocks), (model.text, model.text.parts.layers)):
        factors, depth = layer_factors(DECAY, tower), len(layers)
        assert depth == tower.config.depth
        inside = {p: DECAY ** (depth - 1 - index) for index, layer in enumerate(layers) for p in layer.parameters()}
        others = {name: factors[p] for name, p in tower.named_parameters() if p not in inside}
        assert {p: factors[p] for p in inside} == inside
        assert set(others.values()) == {1.0, DECAY**depth}
        before = {name for name, factor in others.items() if factor < 1}
        assert before and all("embed" in name or "cls" in name or "pre" in name or "conv" in name for name in before)
        last = (
            "head",
            "norm.",
            "ln_post",
            "fc_norm",
            "attn_pool",
            "ln_final",
            "text_projection",
            "temporal",
            "adapters",
        )
        assert not {name for name in before if any(part in name for part in last)}
