"""The page about HTTP names tests; each of them is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_names_exists() -> None:
    """In some file of tests, under exactly that name; and every line of a table names one."""
    lines = [line for line in (ROOT / "docs" / "http.md").read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    rows = [line for line in lines if not line.startswith("| what goes wrong elsewhere")]
    assert len(rows) > 20
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
    }
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= there, row
