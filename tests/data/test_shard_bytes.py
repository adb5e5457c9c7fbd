"""A build's bytes are those that earlier versions wrote, so that shard folders and their fingerprints stay good."""

from __future__ import annotations

import hashlib

import av
import pytest

from ace_dist.config import load_config
from ace_dist.data.datasets import build_dataset
from ace_dist.worlds import READERS

# SHA-256 over the tar and index files in the order of their names, written by the version of 8e4d2bd with these
# libraries; other ones may encode other bits.
EXPECTED = {
    "mjpeg": "7b0c36ad6a9eee0214cc5a9ceeae7402e8e5a441091b58375e302399f8bb99f2",
    "vp9": "20259a3333bf8065b0aff9cbe06b21ef69f9cd5a38b96fce8dd8c3af335f04aa",
}
MADE_WITH = ("18.1.0", (62, 28, 102))


@pytest.mark.skipif((av.__version__, av.library_versions["libavcodec"]) != MADE_WITH, reason="another encoder")
@pytest.mark.parametrize(("codec", "quality"), [("mjpeg", 4), ("vp9", 20)])
def test_a_small_world_has_the_bytes_it_always_had(tmp_path, codec: str, quality: int) -> None:
    settings = [
        "dataset=tabletop", "name=x", "dataset.world.train_clips=24", "dataset.world.test_clips=18",
        f"dataset.encoding.codec={codec}", f"dataset.encoding.quality={quality}", "dataset.clips_per_shard=16",
        f"dataset.shards={tmp_path}", "dataset.workers=1",
    ]  # fmt: skip
    shards = build_dataset(load_config(settings).dataset, READERS, progress=False)
    assert shards is not None
    digest = hashlib.sha256()
    for path in sorted(tmp_path.glob("*-*.*")):
        digest.update(path.read_bytes())
    assert digest.hexdigest() == EXPECTED[codec]
    assert shards.manifest["configuration"]["source"] == {
        "kind": "tabletop",
        "world": {
            "domain_shift": 1.0, "fps": 8.0, "motion_noise": 0.02, "seed": 0, "segment_s": 2.4, "size": 64,
            "source_s": 3.0, "test_clips": 18, "test_people": 4, "train_clips": 24, "train_people": 12,
        },
    }  # fmt: skip
