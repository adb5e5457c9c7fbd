"""Every command of the README and of the pages in docs/, run at toy size in the order in which it stands there.

`RULES` says for each command what is changed so that it ends in seconds; a command that no rule knows fails, so a new
one on a page needs a line here. A command that needs what CI has not is run up to the point where it says so, or
is left out with a reason.
"""

import re
import shlex
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from page_processes import run, start_server
from test_own_videos import render_video

from ace_dist.config import known_keys
from ace_dist.worlds.tabletop.world import TabletopConfig

pytestmark = pytest.mark.slow  # the tests of this file build on each other: --dist loadfile

ROOT = Path(__file__).resolve().parents[2]
RUN_PAGES = (
    "README.md",
    "docs/segmentation.md",  # after the README, in its folder
    *(f"docs/{name}.md" for name in ("install", "own_videos", "export", "accuracy", "reproduce", "cluster", "method")),
    *(f"docs/{name}.md" for name in ("language_models", "gpu", "concepts", "data")),
)  # each in a working folder of its own; test_architecture_page.py runs the blocks of that page
SAME_FOLDER = {"docs/export.md": "docs/own_videos.md", "docs/segmentation.md": "README.md"}  # goes on where it ends
USED = {  # blocks that are no commands of a working folder, and what holds them
    ("docs/architecture.md", "python"): "tests/docs/test_architecture_page.py",
    ("docs/own_videos.md", "csv"): "tests/end_to_end/test_page_commands.py",
    ("docs/segmentation.md", "yaml"): "tests/end_to_end/test_examples.py",
    ("docs/formats.md", "json"): "tests/docs/test_pages.py",
    ("kernels/README.md", "python"): "tests/kernels/test_readme.py",
}
BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n+)?^```(\w*)\n.*?^```$", re.DOTALL | re.MULTILINE)
WORLD = ("dataset.world.train_clips=24", "dataset.world.test_clips=36")
SHORT = ("training.max_steps=2", "training.batch_size=2", "training.device=cpu")


@dataclass(frozen=True)
class Rule:
    """What is done with the commands that match `pattern`: the first rule that matches counts.

    `add` is appended and `replace` changed; `refused` is what the command must answer, with exit status 2, where it
    needs files that cannot be shipped; `left_out` says why a command is not run at all.
    """

    pattern: str
    add: tuple[str, ...] = ()
    replace: tuple[tuple[str, str], ...] = ()
    refused: str = ""
    left_out: str = ""


RULES = (
    Rule(r"^make install", left_out="made the environment in which this test runs"),
    Rule(r"^make demo", left_out="four commands at full size: test_make_demo_is_what_the_page_says"),
    Rule(r"^make test", left_out="this is it"),
    Rule(r"^pip install ", left_out="needs a package index and an environment of its own"),
    Rule(r"^sbatch ", left_out="needs SLURM: tests/slurm/test_build_array.py"),
    Rule(
        r"(launchers/explore.py|ace explore) ",
        left_out="serves until Ctrl-C: tests/end_to_end/test_explorer.py, test_first_contact.py",
    ),
    Rule(r"^ace own ", left_out="the commands below it, one after the other: tests/end_to_end/test_own.py"),
    # Data and weights that cannot be shipped; test_paper_data.py and tests/models/test_importing.py have
    # small copies of each.
    Rule(r"build_shards.py dataset=gtea", refused="dataset.root=/data/gtea is not a folder"),
    Rule(r"build_shards.py dataset=ikea", refused="dataset.root=/data/ikea is not a folder"),
    Rule(r"build_shards.py dataset=ata", refused="/data/ata"),
    Rule(r"convert_ata.py ", refused="/data/ata"),
    Rule(r"ace annotations ", refused="labels.eaf does not exist"),
    Rule(r"import_weights.py source=\S+\.(pyth|pt) ", refused="does not exist"),
    Rule(r"train.py experiment=(gtea_ace|own model=timesformer_b16)", add=("--cfg",)),
    # Sweeps and jobs: checked row by row, submitted by tests/slurm and tests/cluster/test_cluster.py; what asks a sweep
    # how it stands finds none.
    Rule(r"sweep.py (collect|status|retry) ", refused="sweep.json does not exist"),
    Rule(r"report.py sweep=", refused="sweep.json does not exist"),
    Rule(r"sweep.py (sweep|experiment)=", add=("dry_run=true",), replace=(("0..4", "0"), ("1..4", "1"))),
    Rule(r"submit.py ", add=("dry_run=true",)),
    Rule(r"^ace demo", add=(*WORLD, *SHORT, "dataset.workers=1", "ranks=1")),
    # The rest runs: fewer clips, two steps, one rank, no worker process.
    Rule(r"build_shards.py experiment=demo", add=(*WORLD, "dataset.workers=1")),
    Rule(r"train.py experiment=demo", add=(*WORLD, *SHORT)),
    Rule(r"ace shards dataset=csv", add=("dataset.workers=1",)),
    Rule(r"ace train experiment=own", add=(*SHORT, "ranks=1")),
    Rule(r"launchers/(report|estimate|build_synonyms|inspect_synonyms).py "),
    Rule(r"ace (synonyms|shards verify|classify|export|estimate|report) "),
    Rule(r"ace segment ", add=("cache=null",)),
    # The list of the tutorial shows none of the demo's actions; test_examples.py calibrates on videos that do.
    Rule(r"ace calibrate ", add=("cache=null",), refused="calibration needs actions of two people"),
    Rule(r"ace evaluate ", add=("ranks=1",)),
)


def tracked_pages():
    named = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in named.splitlines()]


def blocks(page, language):
    """Contents of the fenced blocks of a page in a language, less those that are marked as not run."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"(?<!-->\n\n)^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(*pages):
    """Every command of the pages, a list of words each; comments and continued lines as a shell reads them."""
    lines = "".join(block for page in pages for block in blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def rule_of(words):
    """The first rule that knows the command."""
    text = " ".join(words)
    return next((rule for rule in RULES if re.search(rule.pattern, text)), None)


def toy(words, rule):
    """The script and its arguments at toy size: one rank whatever the launcher, with the rule's changes."""
    script = next(index for index, word in enumerate(words) if word == "ace" or word.startswith("launchers/"))
    given = words[script:]
    for old, new in rule.replace:
        given = [word.replace(old, new) for word in given]
    return [*given, *(word for word in rule.add if word not in given)]


@pytest.fixture(scope="module")
def server():
    """What all commands are forks of. One thread: forks of threads hang."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MPLBACKEND", "Agg")
        yield start_server()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The working folder of a page: launchers, the annotations that the tutorial prints, videos of that length."""
    made = cache(lambda page: make_checkout(tmp_path_factory.mktemp(Path(page).stem)))
    return lambda page: made(SAME_FOLDER.get(page, page))


def make_checkout(folder):
    (folder / "launchers").symlink_to(ROOT / "launchers")
    (folder / "ace").write_text("import sys\nfrom ace_dist.cli import ace\nsys.exit(ace())\n")
    (annotations,) = blocks("docs/own_videos.md", "csv")
    (folder / "annotations.csv").write_text(annotations)
    rows = [line.split(",") for line in annotations.splitlines()[1:]]
    for video in {row[0] for row in rows}:
        (folder / video).parent.mkdir(exist_ok=True)
        render_video(folder / video, max(float(row[2]) for row in rows if row[0] == video) + 0.5, (96, 72), 10)
    render_video(folder / "shift.mp4", 6.0, (96, 72), 10)
    return folder


def test_every_command_is_known():
    """A new command needs a rule, a rule that no command needs goes, and a reason is given for each one left out."""
    every = commands(*RUN_PAGES)
    unknown = [" ".join(words) for words in every if rule_of(words) is None]
    assert not unknown, f"the pages have commands that RULES does not know: {unknown}"
    used = {rule_of(words).pattern for words in every}
    assert not [rule.pattern for rule in RULES if rule.pattern not in used], "rules for commands that are gone"
    assert len(every) > 25 and len([words for words in every if rule_of(words).left_out]) < 10


@pytest.mark.parametrize("page", sorted({str(path.relative_to(ROOT)) for path in tracked_pages()}))
def test_every_block_is_run_or_says_why_not(page):
    """`<!-- not run: REASON -->` above a block, which a reader of the page does not see; `text` is a drawing.

    A reason that names a test names one that exists.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    assert len(found) * 2 == len(re.findall("^```", text, re.MULTILINE))
    for block in found:
        reason, language = block.groups()
        run = (page in RUN_PAGES and language in ("bash", "python")) or (page, language) in USED or language == "text"
        assert run or reason, f"{page}: a block of {language or 'no language'}: {block[0][:80]!r}"
        assert all((ROOT / name).is_file() for name in re.findall(r"tests/[\w/]+\.py", reason or ""))
    assert all((ROOT / file).is_file() for file in USED.values())


def test_make_demo_is_what_the_page_says():
    """`make demo` is the first sequence of docs/reproduce.md, in the same order."""
    printed = subprocess.run(["make", "-n", "demo"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    made = [line[line.index("launchers/") :] for line in printed.splitlines() if "launchers/" in line]
    told = [words for words in commands("docs/reproduce.md") if not rule_of(words).left_out][: len(made)]
    assert [shlex.split(line) for line in made] == [
        words[words.index("launchers/" + script(words)) :] for words in told
    ]


def script(words):
    """Name of the launcher in a command."""
    return next(word.removeprefix("launchers/") for word in words if word.startswith("launchers/"))


RUN = [(page, words) for page in RUN_PAGES for words in commands(page) if not getattr(rule_of(words), "left_out", "")]


@pytest.mark.parametrize(("page", "words"), RUN, ids=[f"{page}: {' '.join(words)[:70]}" for page, words in RUN])
def test_the_command_works(page, words, checkout, server):
    """Exit status 0, or the refusal that the rule names; never a traceback."""
    rule = rule_of(words)
    status, said = run(server, toy(words, rule), checkout(page))
    assert "Traceback" not in said, said
    if rule.refused:
        assert status == 2 and rule.refused in said, said
    else:
        assert status == 0, said


PYTHON = [(page, number) for page in RUN_PAGES for number in range(len(blocks(page, "python")))]


@pytest.mark.parametrize(("page", "number"), PYTHON)
def test_the_python_works(page, number, checkout, server):
    """A page's Python, after its commands."""
    folder = checkout(page)
    (folder / "block.py").write_text(blocks(page, "python")[number])
    status, said = run(server, ["block.py"], folder)
    assert status == 0, said


def test_the_readme_is_read_at_one_sitting():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "*/*.md", "ace_dist/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name not in ("CHANGELOG.md", "moved.md")
    and not path.relative_to(ROOT).parts[0].startswith((".", "runs", "data"))
)


def anchors(text):
    """What can be linked to in a page: its titles as GitHub writes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_a_page_names_exists(page):
    """Links with their anchors, files of the repository in backticks, settings, and launchers in commands."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{page} links to {link}"
    words = {word for quoted in re.findall(r"`([^`\n]+)`", text) for word in quoted.split()}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"runs", "data"}
    words = {word.partition("::")[0] for word in words}  # a function of a file: tests/docs/test_paper_page.py
    paths = [word for word in words if word.split("/")[0] in folders and "/" in word and not set(word) & set("*<{=[")]
    new = re.findall(r"^New file `([^`]+)`", text, re.MULTILINE)  # of a recipe: test_architecture_page.py makes it
    assert not [p for p in paths if not (ROOT / p).exists() and p not in new], f"{page} names files that do not exist"
    keys = r"(?<![\w/.-])(?:training|dataset|model|method|loader|evaluation)\.[a-z_.]+[a-z]"
    named = {key for word in words if "/" not in word.partition("=")[0] for key in re.findall(keys, word)}
    known = {*known_keys(), *known_keys(TabletopConfig, "dataset.world.")}
    assert not {key for key in named if not key.endswith((".py", ".safetensors", ".json"))} - known, (
        f"{page} names no setting"
    )
    scripts = set(re.findall(r"launchers/\w+\.py", text))
    assert not [name for name in scripts if not (ROOT / name).exists()], f"{page} names launchers that do not exist"
