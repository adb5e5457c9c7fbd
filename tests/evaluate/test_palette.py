"""Protects the one set of names and colours: nobody reads `vifi_ft`, a method has one colour, all can be told apart."""

import itertools

import pytest

from ace_dist.config import choices
from ace_dist.evaluate.palette import DARK, LIGHT, METHODS, method_colours, method_name


def test_every_shipped_method_has_a_name_of_its_own():
    names = [method_name(key) for key in choices("method")]
    assert len(set(names)) == len(names) and not any("_" in name for name in names)
    assert method_name("vifi_ft training.lr_text=0.00005") == "ViFi-CLIP, lr_text=0.00005"
    assert method_name("my_method") == "my_method"


def test_a_method_keeps_its_colour_whatever_stands_beside_it():
    assert method_colours(["ACE (seed 1)", "lavila", "mine"])[0] == method_colours(["ace training.lr_text=0.2"])[0]
    assert method_colours(["ViFi-CLIP, prompts"]) == method_colours(["vifi_pr"]) != method_colours(["ViFi-CLIP"])
    assert len(set(method_colours(["mine", "yours", "hers"]))) == 3


# Machado, Oliveira and Fernandes 2009, severity 1: what the two common kinds of colour blindness see, in linear RGB.
BLIND = {
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
}


@pytest.mark.parametrize("kind", BLIND)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colour_blind_readers_tell_them_apart(theme, kind):
    def seen(colour):
        linear = [(value / 255) ** 2.2 for value in bytes.fromhex(colour.removeprefix("#"))]
        mixed = [sum(a * b for a, b in zip(row, linear, strict=True)) for row in BLIND[kind]]
        return [255 * max(value, 0.0) ** (1 / 2.2) for value in mixed]

    methods = method_colours(["ace", "procvlr", "vifi_ft", "vifi_pr", "bike", "text4vis", "lavila"], theme)
    for group in (methods, [theme.base, theme.novel]):
        for one, other in itertools.combinations(map(seen, group), 2):
            assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 > 40, (group, METHODS)
