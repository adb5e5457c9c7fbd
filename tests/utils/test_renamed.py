"""Old dotted names of modules: the same module as under the new name, with a warning that says it."""

import importlib
import sys

import pytest

from ace_dist.utils.renamed import MODULES, new_name

BELOW = ("evaluation.metrics", "evaluation.classifier", "training.engine", "methods.bike", "concepts.generation.sheet",
         "data.readers.gtea", "data.tabletop.world", "explorer.session")  # fmt: skip


@pytest.mark.parametrize("old", [*MODULES, *BELOW])
def test_an_old_name_is_the_new_module(old):
    new = new_name(f"ace_dist.{old}")
    sys.modules.pop(f"ace_dist.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"ace_dist.{old} is now {new}"):
        found = importlib.import_module(f"ace_dist.{old}")
    assert found is sys.modules[new] and found.__name__ == new


def test_names_that_stayed_are_left_alone():
    """A module that was not renamed, one of somebody else, and a name that never was."""
    for name in ("ace_dist.concepts", "ace_dist.data.shards", "ace_dist.config", "evaluation", "numpy"):
        assert new_name(name) is None
    with pytest.raises(ModuleNotFoundError, match="ace_dist.evaluate.nothing"):
        importlib.import_module("ace_dist.evaluation.nothing")
