"""The code of kernels/README.md runs as it stands, on a CPU: what its names hold is made here."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[2] / "kernels" / "README.md"


def test_the_code_of_the_page():
    """Two label sets of three classes with two phrases each, and attention over eight frames."""
    offsets, rows = torch.tensor([0, 2, 4, 6]), torch.arange(6)
    names = {
        "video": torch.randn(4, 16, requires_grad=True), "text": torch.randn(6, 16), "temperature": 0.02,
        "class_offsets": offsets, "labels": torch.tensor([0, 1, 2, 0]), "shadow_text": torch.randn(3, 16),
        "shadow_offsets": torch.arange(4), "shadow_rows": torch.tensor([0, 2, 4]),
        "set_offsets": [offsets, offsets], "set_rows": [rows, rows],
        "qkv": torch.randn(5, 8, 3, 2, 16), **{name: torch.randn(5, 8, 2, 16) for name in "qkv"},
    }  # fmt: skip
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(block.replace('"cuda"', '"cpu"'), names)
    assert names["logits"].shape == (4, 3) and names["losses"].shape == (2,) and names["out"].shape == (5, 8, 2, 16)
    (names["loss"] + names["losses"].sum()).backward()
    assert names["video"].grad.isfinite().all()
