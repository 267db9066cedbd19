"""Writes results down: the tables of `docs/performance.md` between their marks, and its pictures."""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.headline import LIMIT_MS
from bench.scaling import rewrite
from bench.table import Row, put, to_markdown

_WIDTH, _LABEL, _BAR, _GAP = 860, 330, 18, 8
_LEFT, _HEIGHT = 40, 330
_INK, _FAINT, _FILL, _SECOND, _THIRD = "#1c2733", "#8795a3", "#2f6f9f", "#c2703d", "#4f8a4b"


def write_report(document: Path, machine: str, results: Mapping[str, Sequence[Row]]) -> None:
    """Puts the tables into the document, the pictures into the folder of its name, and what follows into `scaling.md`.

    Args:
        document: has `<!-- NAME -->` and `<!-- /NAME -->` around each table, and around the machine.
        machine: what it was measured on.
        results: rows by subject; subjects that were not measured stay as they are.
    """
    text = put(document.read_text(encoding="utf-8"), "machine", f"{machine}\n")
    for name, rows in results.items():
        text = put(text, name, to_markdown(rows))
    document.write_text(text, encoding="utf-8")
    folder = document.with_suffix("")
    folder.mkdir(exist_ok=True)
    for name, picture in draw_pictures(results).items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")
    beside = document.with_name("scaling.md")
    if beside.exists():
        beside.write_text(rewrite(beside.read_text(encoding="utf-8"), text), encoding="utf-8")


def draw_pictures(results: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """The pictures of what was measured, by name."""
    pictures = {}
    if ways := [row for row in results.get("ways", ()) if row.figure is not None]:
        pictures["ways"] = draw_bars("Answers a second, 32 connections, one product each", [(_bars(ways), _FILL)])
    if growth := results.get("growth", ()):
        curves = {name: _points(growth, name) for name in ("warm mix", "cold product", "cold styles")}
        pictures["growth"] = draw_curves("Answers a second by products of the catalogue", curves, by_tens=True)
    if knee := [row for row in results.get("headline", ()) if row.at is not None]:
        limit = [(row.at or 0.0, float(LIMIT_MS)) for row in knee]
        curves = {"99th percentile, ms": _points(knee, ""), f"the limit, {LIMIT_MS} ms": limit}
        pictures["knee"] = draw_curves("99th percentile by reads a second that were asked for", curves, tall_tens=True)
    if mixed := results.get("mixed", ()):
        reads = _bars([row for row in mixed if row.name.startswith("reads beside")])
        lags = _bars([row for row in mixed if row.name.startswith("lag at")])
        pictures["mixed"] = draw_bars(
            "Reads a second, and the 99th percentile of lag in ms, beside commands", [(reads, _FILL), (lags, _SECOND)]
        )
    return pictures


def draw_curves(
    title: str, curves: Mapping[str, Sequence[tuple[float, float]]], *, by_tens: bool = False, tall_tens: bool = False
) -> str:
    """Lines with their points as SVG, from (0, 0) or, where an axis goes by powers of ten, from its least value.

    Args:
        title: above it.
        curves: points of each, along and up, by its name.
        by_tens: whether the axis along goes by powers of ten.
        tall_tens: whether the axis up does.
    """
    points = [point for curve in curves.values() for point in curve]
    along = _Axis([x for x, _ in points], _LEFT, _WIDTH - 190, by_tens=by_tens)
    up = _Axis([y for _, y in points], _HEIGHT - 30, 50, by_tens=tall_tens)
    lines = [f'<text x="0" y="16" font-weight="600" fill="{_INK}">{html.escape(title)}</text>']
    lines += [_text(along.place(x), _HEIGHT - 8, f"{x:,.0f}", "middle") for x in sorted({x for x, _ in points})]
    for name, colour in zip(curves, (_FILL, _SECOND, _THIRD), strict=False):
        placed = [(along.place(x), up.place(y), y) for x, y in sorted(curves[name])]
        path = " ".join(f"{x:.0f},{y:.0f}" for x, y, _ in placed)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines += [f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3.5" fill="{colour}"/>' for x, y, _ in placed]
        lines += [_text(x, y - 8, f"{value:,.0f}", "middle") for x, y, value in placed if "limit" not in name]
        if placed:
            x, y, _ = placed[-1]
            lines.append(f'<text x="{x + 34:.0f}" y="{y + 4:.0f}" fill="{colour}">{html.escape(name)}</text>')
    return _frame(lines, _HEIGHT)


class _Axis:
    """Where values stand along a picture."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, by_tens: bool) -> None:
        self._by_tens = by_tens
        scaled = [self._scale(value) for value in values] or [0.0]
        self._low, self._high = (min(scaled) if by_tens else 0.0), max(scaled)
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        """In pixels."""
        width = self._high - self._low or 1.0
        return self._start + (self._end - self._start) * (self._scale(value) - self._low) / width

    def _scale(self, value: float) -> float:
        return math.log10(max(value, 1.0)) if self._by_tens else value


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{_FAINT}">{words}</text>'


def _points(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    return [(row.at, row.figure or 0.0) for row in rows if row.at is not None and row.name.startswith(name)]


def _frame(lines: Sequence[str], height: int) -> str:
    style = "font: 13px system-ui, sans-serif; background: #fff"
    size = f'width="{_WIDTH}" height="{height}" viewBox="-8 -8 {_WIDTH + 16} {height + 8}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">\n' + "\n".join(lines) + "\n</svg>\n"


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
    return _frame(lines, y)


def _bars(rows: Sequence[Row]) -> list[tuple[str, float]]:
    return [(row.name, row.figure or 0.0) for row in rows]
