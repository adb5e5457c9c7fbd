"""`ace models`: what an encoder costs, whose it is, and what trains of it."""

import pytest

from ace_dist import cli
from ace_dist.config import choices
from ace_dist.models.convert.known import KNOWN
from ace_dist.tools import models
from ace_dist.tools.models import describe
from ace_dist.utils.errors import UserError


def test_an_encoder_in_three_lines():
    """Parameters are the count of open_clip's own model, 447,660,545 with the scale of its logits."""
    lines = describe("pe_core_b16", frames=2).splitlines()
    assert lines[0].startswith("pe_core_b16        447.7 M parameters, 22.3 M train, 71.2 GFLOPs")
    assert lines[1].strip() == "trains: last 3 of 12 video blocks, text projection"
    assert lines[2].strip() == "Apache-2.0: ace weights get pe_core_b16"


def test_what_ships_and_what_has_sizes_to_be_said(capsys):
    assert cli.execute(["models", "model=tabletop", "frames=4"]) == 0
    printed = capsys.readouterr().out
    assert "Apache-2.0, shipped with ace-dist" in printed and "one clip of 4 frames" in printed
    assert "model.video.arch=NAME" in describe("open_clip", frames=8)
    with pytest.raises(UserError, match=r"model=pe_core_b61 does not exist.*pe_core_b16"):
        cli.execute(["models", "model=pe_core_b61"])


def test_a_model_that_takes_no_such_clip_says_so_in_its_line(monkeypatch):
    """Alone it is an error; it must not end the list of the others."""
    monkeypatch.setattr(models, "choices", lambda group: ["videomae_b16", "tabletop"])
    lines = models.models_table(15).splitlines()
    assert lines[0].startswith("videomae_b16       dataset.clip.frames=15 is odd") and lines[1].startswith("tabletop ")
    with pytest.raises(UserError, match="frames=15 is odd"):
        models.models_table(15, "videomae_b16")


def test_every_model_can_be_fetched_or_ships():
    """`ace weights get NAME && ... model=NAME` is all that it takes."""
    shipped = {name for name in choices("model") if name.startswith("tabletop")}
    for name in shipped:
        assert "Apache-2.0, shipped with ace-dist" in describe(name, frames=2)
    fetched = set(choices("model")) - shipped - {"open_clip", "timesformer_b16"}
    assert fetched == {known.model for known in KNOWN.values() if known.model}
    assert all(name == known.model for name, known in KNOWN.items() if known.model)
