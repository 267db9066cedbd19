"""The page of all settings says what the service reads: the same names, the same defaults, both ways."""

import re
from pathlib import Path

import pytest

from atelier import settings as settings_module
from atelier.environment import Environment
from atelier.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
ROW = re.compile(r"^\| `(?P<name>ATELIER_\w+)` \| (?P<default>[^|]+) \|", re.MULTILINE)
NEEDED = {
    "ATELIER_NODES": "pg1=127.0.0.1:5433",
    "ATELIER_TOKEN_KEYS": "k1:" + "ab" * 32,
    **{f"ATELIER_{role}_PASSWORD": "x" for role in ("READER", "WRITER", "MONITOR")},
}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Every name that the settings ask the environment for, with its default; None where there is none."""
    asked: dict[str, str | None] = {}
    plain = Environment.text

    def text(self: Environment, name: str, default: str | None = None, *, secret: bool = False) -> str:
        asked[name] = default
        return plain(self, name, default, secret=secret)

    monkeypatch.setattr(Environment, "text", text)
    Settings.from_environment(NEEDED)
    return asked


def test_page_of_settings_names_what_is_read_and_nothing_else(read: dict[str, str | None]) -> None:
    """One that was added without a line there, or has gone and left one, fails this."""
    named = [row["name"] for row in ROW.finditer(PAGE.read_text(encoding="utf-8"))]
    assert len(named) == len(set(named))
    assert set(named) == read.keys() | settings_module._OTHERS


def test_page_of_settings_tells_the_defaults(read: dict[str, str | None]) -> None:
    """Of those that have one; `needed` and `none` stand for the others."""
    told = {row["name"]: row["default"] for row in ROW.finditer(PAGE.read_text(encoding="utf-8"))}
    for name, default in read.items():
        if default is None:
            assert told[name].startswith("needed"), name
        else:
            assert told[name] == (f"`{default}`" if default else "none"), name
