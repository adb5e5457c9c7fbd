"""Protects the console: progress that a log file can hold, DeepSpeed's warnings, expert figures on request alone."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import sys
import termios

import pytest

from ace_dist.cli.words import take_verbose
from ace_dist.train.metrics import summary_table
from ace_dist.utils import console
from ace_dist.utils.console import Progress, quiet_deepspeed
from ace_dist.utils.errors import ConfigError


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_file_gets_plain_lines(capsys, monkeypatch):
    """One after the first step, one every 30 s, one at the end; none is said twice, and nothing moves the cursor."""
    clock = [100.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: clock[0])
    with Progress(563, "train", "step", start=3) as progress:
        for step in range(60):
            clock[0] += 1
            progress.update(text="loss 9.5" if step % 10 == 0 else None)
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "train: 4 of 563 steps, 9:19 left, loss 9.5",
        "train: 34 of 563 steps, 8:49 left, loss 9.5",
        "train: 63 of 563 steps, 8:20 left, loss 9.5",
    ]
    assert "\r" not in out + err and not err


def test_a_terminal_gets_one_bar(capsys, monkeypatch):
    """Which begins with the first step, under what was said before it."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(4, "train", "step") as progress:
        assert sys.stderr.getvalue() == ""
        for _ in range(4):
            progress.update(text="loss 1.0")
    assert "4/4" in sys.stderr.getvalue() and "loss 1.0" in sys.stderr.getvalue() and not capsys.readouterr().out


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (24, 60)])
def test_a_terminal_that_does_not_know_its_size_gets_a_bar_too(rows, columns, monkeypatch):
    """A pseudo terminal without a size, as `docker exec -t` and `script` make them, and one of 60 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with open(theirs, "w") as terminal, open(ours, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress(4, "train", "step") as progress:
            progress.update(4)
        monkeypatch.undo()
        os.set_blocking(ours, False)
        said = b"".join(iter(lambda: screen.read(10_000), None)).decode()
    assert "train: 100%" in said and "4/4" in said and max(map(len, re.split(r"[\r\n]+", said))) <= (columns or 80)


def test_a_line_at_the_end_of_what_failed(capsys):
    """A log says how far the work came."""
    with pytest.raises(ZeroDivisionError), Progress(10, "train", "step") as progress:
        progress.update()
        progress.update()
        raise ZeroDivisionError
    assert capsys.readouterr().out.splitlines()[-1] == "train: 2 of 10 steps, 0:00 left"


@pytest.fixture
def said(monkeypatch):
    """What a handler of DeepSpeed's logger gets, at the level that DeepSpeed's import sets."""
    monkeypatch.delenv(console.VERBOSE, raising=False)
    logger, lines = logging.getLogger("DeepSpeed"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    monkeypatch.delenv(console.VERBOSE, raising=False)
    quiet_deepspeed()


SPOKEN = ("**** You are using ZeRO with an untested optimizer, proceed with caution *****", "a real problem")


def test_deepspeed_warns_of_what_is_not_expected(said):
    quiet_deepspeed()
    quiet_deepspeed()
    logger = logging.getLogger("DeepSpeed")
    logger.info("[Rank 0] step=10")
    for text in SPOKEN:
        logger.warning(text)
    assert said == ["a real problem"]


def test_verbose_lets_deepspeed_say_all(said, monkeypatch):
    monkeypatch.setenv(console.VERBOSE, "1")
    quiet_deepspeed()
    logging.getLogger("DeepSpeed").info("[Rank 0] step=10")
    logging.getLogger("DeepSpeed").warning(SPOKEN[0])
    assert said == ["[Rank 0] step=10", SPOKEN[0]]


def test_figures_for_experts_are_asked_for(monkeypatch):
    """By either word, before or after the others; ranks and jobs inherit it."""
    monkeypatch.setenv(console.VERBOSE, "0")
    summary = {
        "clips_per_s": 47.3, "ranks": 2, "data_wait_share": 0.01, "memory_peak_gib": 1.23, "mfu_percent": None,
        "ceiling_tflops_per_s": None, "model_tflops_per_s": 0.02, "model_tflops_per_step": 0.007,
        "model_gflops_by_part": {"text": {"forward": 1.0, "backward": 2.0}}, "memory_gib_by_part": {"weights": 0.1},
    }  # fmt: skip
    assert len(summary_table(summary).splitlines()) == 1 and "TFLOP" not in summary_table(summary)
    for word in ("verbose=true", "--verbose"):
        assert take_verbose(["train", word, "seed=1"]) == ["train", "seed=1"]
        assert "TFLOP/s" in summary_table(summary) and "weights 0.100" in summary_table(summary)
        assert take_verbose(["train", "verbose=false"]) == ["train"]
        assert "TFLOP" not in summary_table(summary)
    with pytest.raises(ConfigError, match="verbose=maybe"):
        take_verbose(["train", "verbose=maybe"])
