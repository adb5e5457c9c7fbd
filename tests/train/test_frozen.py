"""Protects the storing of frozen weights: the very file that safetensors would write, tensor by tensor."""

import torch
from safetensors import torch as safetensors

from ace_dist.train.checkpoint import file_pieces, store_frozen


def test_the_file_is_that_of_the_library(tmp_path):
    state = {
        "video.b": torch.randn(3, 5).T,  # not contiguous
        "video.a": torch.randn(()),
        "text.ids": torch.arange(7)[None],
        "text.low": torch.randn(3).bfloat16(),
        "text.empty": torch.zeros(0, 4),
    }
    expected = safetensors.save({name: tensor.contiguous() for name, tensor in state.items()})
    assert b"".join(map(bytes, file_pieces(state))) == expected
    runs = [tmp_path / name for name in ("one", "two")]
    digests = {store_frozen(run, state) for run in runs}
    files = [run / "model" / "frozen.safetensors" for run in runs]
    assert files[0].read_bytes() == expected and files[0].samefile(files[1]) and len(digests) == 1
