"""What goes to the console: progress on a terminal or in a log file, expert figures, DeepSpeed's warnings."""

import logging
import os
import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

VERBOSE = "ACE_DIST_VERBOSE"  # an environment variable, so that ranks and jobs inherit it
LINE_EVERY_S = 30.0
EXPECTED = {  # DeepSpeed's warnings that say nothing of this run, and why
    "ZeRO with an untested optimizer": "torch's SGD and AdamW under ZeRO are tested here (tests/distributed)",
    "Setting accelerator to CPU": "training.device chose it, and the line `steps: ...` says it",
}


def is_verbose() -> bool:
    """Whether `verbose=true` was given: figures for experts, and all that DeepSpeed's logger says."""
    return os.environ.get(VERBOSE) == "1"


def quiet_deepspeed() -> None:
    """Have DeepSpeed's logger say warnings alone, without those of `EXPECTED`; with `verbose=true` all from INFO on.

    To be called before DeepSpeed is imported, which warns already, and after, as its import sets the level.
    """
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.INFO if is_verbose() else logging.WARNING)
    for handler in logger.handlers:
        handler.setLevel(logger.level)
    if is_unexpected not in logger.filters:
        logger.addFilter(is_unexpected)


def is_unexpected(record: logging.LogRecord) -> bool:
    return is_verbose() or not any(text in record.getMessage() for text in EXPECTED)


def say(line: str) -> None:
    """Print a line on rank 0."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


@cache
def say_once(line: str) -> None:
    """`say`, once in a process."""
    say(line)


class Progress:
    """How far some work is: a bar on a terminal; elsewhere, as in a log file, a plain line now and then.

    Nothing is shown before the first `update`, so what is said until then stands above. A line is printed after the
    first update, every 30 s, and at the end. On a terminal (stderr) the bar is tqdm's.
    """

    def __init__(self, total: int, label: str, unit: str, start: int = 0) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.start = self.done = self.said = start
        self.text = ""
        self.bar: tqdm[Any] | None = None
        self.start_s = time.perf_counter()
        self.next_s = 0.0

    def update(self, count: int = 1, text: str | None = None) -> None:
        """`count` more are done; `text` stands behind the numbers until the next one."""
        self.done += count
        self.text = self.text if text is None else text
        if not sys.stderr.isatty():
            if time.perf_counter() >= self.next_s:
                self.say()
            return
        if self.bar is None:
            from tqdm import tqdm

            first = self.done - count
            self.bar = tqdm(total=self.total, initial=first, desc=self.label, unit=self.unit, **bar_shape())
        self.bar.set_postfix_str(self.text, refresh=False)
        self.bar.update(count)

    def say(self) -> None:
        """Print the line of a log file."""
        now = time.perf_counter()
        self.said, self.next_s = self.done, now + LINE_EVERY_S
        left_s = (now - self.start_s) / max(1, self.done - self.start) * (self.total - self.done)
        left = f", {duration(left_s)} left" if self.done < self.total else ""
        print(
            f"{self.label}: {self.done} of {self.total} {self.unit}s{left}{self.text and ', '}{self.text}", flush=True
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.said < self.done:
            self.say()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def bar_shape() -> dict[str, Any]:
    """As the terminal says; 80 columns where it says 0, as some containers' do: tqdm's bar would be empty there."""
    try:
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:  # no terminal of the system's
        known = True
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 20}


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
