"""Rows of results: what was measured, against what, whether it met its target."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        name: what was measured.
        value: with its unit.
        target: in words; empty for none.
        is_met: whether it met its target.
        figure: the number in the value, for a picture; None where there is none.
    """

    name: str
    value: str
    target: str = ""
    is_met: bool = True
    figure: float | None = None

    @property
    def verdict(self) -> str:
        """One word; empty where there is no target."""
        return ("met" if self.is_met else "MISSED") if self.target else ""


def at_least(name: str, per_s: float, base: float, ratio: float, *, of: str) -> Row:
    """A rate as a ratio of another one."""
    value = f"{per_s:,.0f}/s = {per_s / base:.2f}x {of}"
    return Row(name, value, f">= {ratio:g}x", per_s >= ratio * base)


def below(name: str, value: float, limit: float, unit: str, *, show: Callable[[float], str] = "{:.2f}".format) -> Row:
    """A figure that must stay below another one."""
    return Row(name, f"{show(value)} {unit}", f"< {limit:g} {unit}", value < limit)


def print_row(row: Row) -> None:
    """Writes one line for a terminal."""
    print(f"  {row.name:<52} {row.value:>36}  {row.target:>10}  {row.verdict}", flush=True)


def to_markdown(rows: Sequence[Row]) -> str:
    """The same as a table of a document."""
    lines = ["| what | measured | target | |", "|---|---:|---:|---|"]
    lines += [f"| {row.name} | {row.value} | {row.target} | {row.verdict} |" for row in rows]
    return "\n".join(lines) + "\n"
