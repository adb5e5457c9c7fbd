"""Trains, tests, exports and uses small encoders of other libraries in one process; run by `test_encoders.py`.

`python train_encoders.py FOLDER TOKENIZER` writes FOLDER/shards and, for each of `RUNS`, a run folder and an export.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from ace_dist import Classifier
from ace_dist.config import load_config
from ace_dist.data.datasets import build_dataset
from ace_dist.evaluate.export import export_run
from ace_dist.evaluate.runs import evaluate_run
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.train.trainer import train
from ace_dist.utils.distributed import connect, disconnect
from ace_dist.worlds import READERS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
from data_worlds import write_video

SMALL = [
    "model.video.width=48", "model.video.depth=3", "model.video.heads=2", "model.video.patch=12",
    "model.video.image_size=48", "model.video.trained_blocks=2", "model.text.width=32", "model.text.depth=2",
    "model.text.heads=2",
]  # fmt: skip
RUNS = {  # rotary positions and time adapters; a sigmoid pair with tokens of its own, from weights nobody may sell;
    # tokens of two frames under a new head; a BERT on the text side; LoRA on both sides
    "pe": ["model=pe_core_b16", "model.init=random", "model.video.embed_dim=32", "model.video.temporal=adapter"],
    "siglip": ["model=siglip_b16", "method=ace_sigmoid", "model.video.embed_dim=48", "model.text.vocabulary=40",
               "loader.augment=false", "loader.feature_cache={folder}/features"],
    "videomae": ["model=videomae_b16", "model.init=random", "model.video.embed_dim=32", "model.text.embed_dim=32",
                 "dataset.clip.frames=4", "model.video.recompute=blocks", "loader.augment=false",
                 "loader.feature_cache={folder}/tubelets"],
    "internvideo2": ["model=internvideo2_1b", "model.init=random", "model.video.embed_dim=32",
                     "model.text.embed_dim=32", "loader.augment=false", "loader.feature_cache={folder}/internvideo2"],
    "lora": ["model=clip_b16", "model.init=random", "model.video.embed_dim=32", "model.text.embed_dim=32",
             "model.video.lora_rank=4", "model.text.trained_layers=1", "model.text.lora_rank=2",
             "loader.augment=false", "loader.feature_cache={folder}/features"],
}  # fmt: skip
LICENCE = {"licence_of_released_files": "CC-BY-NC 4.0: non-commercial"}


def main(folder, tokenizer):
    world = ["dataset.world.train_clips=24", "dataset.world.test_clips=24", f"dataset.shards={folder}/shards"]
    toy = [*world, "dataset.workers=1", "dataset.clip.frames=3", "dataset.clip.views=2", "training.batch_size=4"]
    build_dataset(load_config(toy).dataset, READERS)
    ranks = connect("cpu")
    for run, settings in RUNS.items():
        own = [*SMALL, *(setting.format(folder=folder) for setting in settings), "training.max_steps=2"]
        if run == "siglip":
            own += [f"model.text.tokenizer={tokenizer}", *starting_weights(folder, [*toy, *own])]
        config = load_config(["experiment=demo", *toy, *own, f"run={folder}/{run}"])
        train(config, ranks)
        evaluate_run(Path(config.run), ranks)
        export_run(Path(config.run), folder / f"{run}_export")
        (folder / f"{run}_used.json").write_text(json.dumps(use(folder / run, folder / f"{run}_export")))
    disconnect()


def starting_weights(folder, settings):
    """Files of weights as an import writes them, of a model that may not be sold; settings that name them."""
    config = load_config(["experiment=demo", *settings, "model.text.tokenizer=" + str(folder)]).model
    torch.manual_seed(0)
    model = DualEncoder(config.video, config.text)
    video = {**model.video.state_dict(), "similarity.logit_scale": torch.tensor([3.0])}
    video["similarity.logit_bias"] = torch.tensor([-7.0])
    for part, state in (("video", video), ("text", model.text.state_dict())):
        save_file(dict(state), folder / f"{part}.safetensors", metadata=LICENCE)
    return [f"model.{part}.weights={folder}/{part}.safetensors" for part in ("video", "text")]


def use(run, export):
    """What the run and its export say of a video of 3 s, and what the export shows when."""
    video = torch.randint(256, (24, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = ["spin block", "lift block", "hammer pin"]
    exported = Classifier.from_pretrained(export)
    answers = [dict(each.classify(video, labels)) for each in (Classifier.from_run(run), exported)]
    path = write_video(export.with_name(f"{export.name}.mp4"), video.numpy(), rate=8)
    return {"classified": answers, "segments": len(exported.segment(path, labels[:2]).segments)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
