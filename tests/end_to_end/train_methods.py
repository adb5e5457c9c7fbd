"""Trains and evaluates every method on a tiny tabletop in one process; run by `test_methods.py`.

`python train_methods.py FOLDER` writes FOLDER/shards and a run folder for each of `RUNS`; `vifi_ft_resumed` is stopped
half-way and continued.
"""

import sys
from pathlib import Path

from ace_dist.config import load_config
from ace_dist.data.datasets import build_dataset
from ace_dist.evaluate.runs import evaluate_run
from ace_dist.train.trainer import train
from ace_dist.utils.distributed import connect, disconnect
from ace_dist.worlds import READERS

METHODS = (
    "ace", "ace_no_leaf", "ace_no_shadow", "ace_no_random", "ace_no_fixed", "procvlr", "vifi_ft", "vifi_pr", "bike",
    "text4vis", "lavila", "random",
)  # fmt: skip
VARIANTS = {  # run -> settings of ACE that change how a step is computed
    "ace_accumulated": ["training.accumulation=2"],
    "ace_bf16": ["training.precision=bf16"],
    "ace_text_layers": ["model.text.trained_layers=1", "method.independent_draws=true"],
    "ace_feature_cache": ["loader.augment=false", "loader.feature_cache={folder}/features"],
}
RUNS = (*METHODS, *VARIANTS)
STEPS = 4


def main(folder):
    world = ["dataset.world.train_clips=48", "dataset.world.test_clips=36", f"dataset.shards={folder}/shards"]
    toy = [*world, "dataset.workers=1", "dataset.clip.frames=4", "dataset.clip.views=2", "training.batch_size=8",
           "training.log_every_steps=1"]  # fmt: skip
    short = f"training.max_steps={STEPS}"
    build_dataset(load_config(toy).dataset, READERS)
    ranks = connect("cpu")
    for run in RUNS:
        own = [setting.format(folder=folder) for setting in VARIANTS.get(run, ())]
        own += [short] if run != "random" else []  # which takes no step unless the command line asks for some
        method = "ace" if run in VARIANTS else run
        config = load_config(["experiment=demo", f"method={method}", *toy, *own, f"run={folder}/{run}"])
        train(config, ranks)
        evaluate_run(Path(config.run), ranks)
    half = [*toy, short, f"run={folder}/vifi_ft_resumed", "method=vifi_ft"]
    train(load_config([*half, f"training.stop_after_steps={STEPS // 2}"]), ranks)
    train(load_config(half), ranks)
    disconnect()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
