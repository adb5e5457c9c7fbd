"""Names and colours of methods and of action parts, one for tables, figures and pages alike.

The colours are Okabe and Ito's, which readers with any kind of colour blindness tell apart. A method keeps its colour
in every figure; base and novel have theirs, and a marker of their own beside it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILLION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"
OLIVE = "#8f7d00"  # their yellow, dark enough for a line on white
PLUM = "#6b2d58"  # purple, darkened: the second ViFi-CLIP

METHODS = {  # name of a method in results and `runs.csv` -> what readers know it as, and its colour
    "ace": ("ACE", BLUE),
    "ace_plus": ("ACE+", GREEN),
    "procvlr": ("ProcVLR", ORANGE),
    "vifi_ft": ("ViFi-CLIP", PURPLE),
    "vifi_pr": ("ViFi-CLIP, prompts", PLUM),
    "bike": ("BIKE", SKY),
    "text4vis": ("Text4Vis", BLACK),
    "lavila": ("LaViLa", OLIVE),
    "random": ("Random", "#808080"),
    "ace_no_leaf": ("ACE without leaf augmentation", BLUE),
    "ace_no_shadow": ("ACE without shadow negatives", BLUE),
    "ace_no_random": ("ACE without random labels", BLUE),
    "ace_no_fixed": ("ACE without fixed labels", BLUE),
    "ace_sigmoid": ("ACE with a sigmoid loss", BLUE),
    "pretrained_not_fine_tuned": ("before fine-tuning", "#808080"),
    "random_timesformer_ace": ("ACE from random video weights", BLUE),
    "random_timesformer_procvlr": ("ProcVLR from random video weights", ORANGE),
}
OTHERS = (GREEN, VERMILLION, SKY, PURPLE, OLIVE)  # of methods without a name here, in the order of the figure


@dataclass(frozen=True)
class Theme:
    """Colours of one rendering. `base`, `novel`: actions that training showed, and those that it did not."""

    paper: str
    ink: str
    muted: str
    grid: str
    lift: float = 0.0  # how far colours are mixed with white, so that dark ones show on a dark page

    @property
    def base(self) -> str:
        return self.colour(GREEN)

    @property
    def novel(self) -> str:
        return self.colour(VERMILLION)

    @property
    def series(self) -> tuple[str, ...]:
        """Of lines that stand for no method."""
        return tuple(map(self.colour, (BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK)))

    def colour(self, name: str) -> str:
        """A colour of the palette as this theme shows it; black is the ink."""
        if name == BLACK:
            return self.ink
        mixed = [round(value + self.lift * (255 - value)) for value in bytes.fromhex(name.removeprefix("#"))]
        return f"#{bytes(mixed).hex()}"


LIGHT = Theme("#ffffff", "#1b2330", "#566070", "#e3e7ed")
DARK = Theme("#161b24", "#e7ebf2", "#9aa5b5", "#2c3442", lift=0.2)


def method_name(key: str) -> str:
    """What readers know a method as, with the settings that follow its name in `runs.csv`; others stay as they are."""
    method, _, settings = key.partition(" ")
    name = METHODS[method][0] if method in METHODS else method
    return f"{name}, {settings.replace('training.', '').replace('method.', '')}" if settings else name


def method_colours(names: Sequence[str], theme: Theme = LIGHT) -> list[str]:
    """The colour of each method, by key or by name, settings behind it left out; others get `OTHERS` in their order."""
    known = METHODS | {name: (name, colour) for name, colour in METHODS.values()}
    strangers = iter(itertools.cycle(OTHERS))
    return [theme.colour(known[key][1] if (key := stem(name, known)) else next(strangers)) for name in names]


def stem(name: str, known: Mapping[str, object]) -> str | None:
    """The method of a name such as `ACE (seed 1)`, `ace training.lr_text=0.2` or `ViFi-CLIP, prompts`."""
    fits = [key for key in known if name == key or name.startswith((f"{key} ", f"{key}, "))]
    return max(fits, key=len, default=None)
