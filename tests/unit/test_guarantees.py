"""What is promised names the tests that hold it, and there they are."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "guarantees.md").read_text()


def read_table(*, below: str) -> dict[str, str]:
    """The first table below a line: what stands in its rows, by what stands in their first column."""
    lines = iter(PAGE.splitlines())
    assert below in lines, f"there is no line {below!r}"
    rows: dict[str, str] = {}
    for line in lines:
        if line.startswith("| "):
            first, rest = line.removeprefix("| ").split(" | ", 1)
            rows[first] = rest
        elif rows and not line.startswith("|"):
            break
    del rows["promise"]
    return rows


PROMISES = read_table(below="# What atelier promises")
HELD = read_table(below="## Tests")
NAMED = re.compile(r"`(\w+/test_\w+\.py)::(test_\w+)`")


def has_test(file: str, name: str) -> bool:
    """Whether a file has a test of that name."""
    path = TESTS / file
    return path.is_file() and any(
        isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.name == name
        for part in ast.parse(path.read_text()).body
    )


def test_every_promise_is_held_by_a_test() -> None:
    """Ten of them in the first table; the rules behind them stand in the other one only."""
    assert len(PROMISES) >= 10
    assert PROMISES.keys() <= HELD.keys()
    assert [promise for promise, tests in HELD.items() if not NAMED.search(tests)] == []


def test_every_test_that_is_named_exists() -> None:
    """Under this name, in this file."""
    named = [found for tests in HELD.values() for found in NAMED.findall(tests)]
    assert len(named) >= 30
    assert [f"{file}::{name}" for file, name in named if not has_test(file, name)] == []


def test_nothing_is_named_in_a_way_that_no_one_looks_up() -> None:
    """Every `::` is of a name that the test above has found."""
    assert PAGE.count("::") == sum(len(NAMED.findall(tests)) for tests in HELD.values()) + PAGE.count("file.py::test`")
