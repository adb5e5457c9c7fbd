"""Counts the inputs that the tests of this folder have drawn, and prints the sum at the end."""

import functools
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """A hypothesis test counts the inputs that it was run with to its end; one that draws several at once returns how
    many."""
    for item in items:
        hypothesis = getattr(getattr(item, "obj", None), "hypothesis", None)
        if hypothesis is not None and HERE in item.path.parents and not hasattr(hypothesis.inner_test, "cases"):
            hypothesis.inner_test = counting(hypothesis.inner_test)


def counting(test):
    @functools.wraps(test)
    def counted(*arguments, **named):
        counted.cases += test(*arguments, **named) or 1

    counted.cases = 0
    return counted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    hypothesis = getattr(item.obj, "hypothesis", None)
    before = hypothesis.inner_test.cases if hypothesis else 0
    try:
        return (yield)
    finally:
        if hypothesis:
            item.user_properties.append(("cases", hypothesis.inner_test.cases - before))


def pytest_terminal_summary(terminalreporter):
    """`user_properties` travel from the workers of pytest-xdist; the sum is over all of them."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    counts = {report.nodeid: count for report in reports for name, count in report.user_properties if name == "cases"}
    if counts:
        terminalreporter.section(f"fuzz: {sum(counts.values()):,} cases")
        for name, count in counts.items():
            terminalreporter.line(f"{count:7,}  {name.removeprefix('tests/fuzz/')}")
