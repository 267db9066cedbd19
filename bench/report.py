"""Writes results down: the tables of `docs/performance.md` between their marks, and its pictures."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.table import Row, to_markdown

_WIDTH, _LABEL, _BAR, _GAP = 860, 330, 18, 8
_INK, _FAINT, _FILL, _SECOND = "#1c2733", "#8795a3", "#2f6f9f", "#c2703d"


def write_report(document: Path, machine: str, results: Mapping[str, Sequence[Row]]) -> None:
    """Puts the tables into the document, and the pictures into the folder of its name beside it.

    Args:
        document: has `<!-- NAME -->` and `<!-- /NAME -->` around each table, and around the machine.
        machine: what it was measured on.
        results: rows by subject; subjects that were not measured stay as they are.
    """
    text = _put(document.read_text(encoding="utf-8"), "machine", f"{machine}\n")
    for name, rows in results.items():
        text = _put(text, name, to_markdown(rows))
    document.write_text(text, encoding="utf-8")
    folder = document.with_suffix("")
    folder.mkdir(exist_ok=True)
    for name, picture in draw_pictures(results).items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")


def draw_pictures(results: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """The pictures of what was measured, by name."""
    pictures = {}
    if ways := [row for row in results.get("ways", ()) if row.figure is not None]:
        pictures["ways"] = draw_bars("Answers a second, 32 connections, one product each", [(_bars(ways), _FILL)])
    if growth := [row for row in results.get("growth", ()) if "cold" in row.name]:
        pictures["growth"] = draw_bars("Answers a second by size of the catalogue", [(_bars(growth), _FILL)])
    if mixed := results.get("mixed", ()):
        reads = _bars([row for row in mixed if row.name.startswith("reads beside")])
        lags = _bars([row for row in mixed if row.name.startswith("lag of")])
        pictures["mixed"] = draw_bars(
            "Reads a second, and lag in ms, beside commands", [(reads, _FILL), (lags, _SECOND)]
        )
    return pictures


def draw_bars(title: str, groups: Sequence[tuple[Sequence[tuple[str, float]], str]]) -> str:
    """Horizontal bars as SVG; each group has a scale and a colour of its own.

    Args:
        title: above it.
        groups: the bars of each group, as label and value, and its colour.
    """
    lines, y = [f'<text x="0" y="16" font-weight="600" fill="{_INK}">{html.escape(title)}</text>'], 32
    for bars, colour in groups:
        largest = max((value for _, value in bars), default=0.0) or 1.0
        for label, value in bars:
            width = (_WIDTH - _LABEL - 90) * value / largest
            middle = y + _BAR * 0.72
            lines.append(
                f'<text x="{_LABEL - 10}" y="{middle:.0f}" text-anchor="end" fill="{_INK}">{html.escape(label)}</text>'
            )
            lines.append(
                f'<rect x="{_LABEL}" y="{y}" width="{max(width, 1):.0f}" height="{_BAR}" rx="2" fill="{colour}"/>'
            )
            lines.append(f'<text x="{_LABEL + width + 8:.0f}" y="{middle:.0f}" fill="{_FAINT}">{value:,.0f}</text>')
            y += _BAR + _GAP
        y += _GAP
    style = "font: 13px system-ui, sans-serif; background: #fff"
    size = f'width="{_WIDTH}" height="{y}" viewBox="-8 -8 {_WIDTH + 16} {y + 8}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">\n' + "\n".join(lines) + "\n</svg>\n"


def _bars(rows: Sequence[Row]) -> list[tuple[str, float]]:
    return [(row.name, row.figure or 0.0) for row in rows]


def _put(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda match: match[1] + content + match[2], text)
