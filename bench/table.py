"""Rows of results: what was measured, against what, whether it met its target."""

import re
import statistics
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
        at: where a curve has it, along the picture; None where it is on no curve.
        settles: the target of the design that it belongs to, a key of `bench.targets.TARGETS`; empty for none.
    """

    name: str
    value: str
    target: str = ""
    is_met: bool = True
    figure: float | None = None
    at: float | None = None
    settles: str = ""

    @property
    def verdict(self) -> str:
        """One word; empty where there is no target."""
        return ("met" if self.is_met else "MISSED") if self.target else ""


def spread(values: Sequence[float], show: Callable[[float], str] = "{:.2f}".format) -> str:
    """The median of some rounds, and between what they lay where there were several."""
    middle = show(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({show(min(values))}..{show(max(values))})"


def at_least(
    name: str, per_s: Sequence[float], base: Sequence[float], ratio: float, *, of: str, settles: str = ""
) -> Row:
    """A rate against another one of the same rounds: the median of their ratios decides."""
    ratios = [mine / theirs for mine, theirs in zip(per_s, base, strict=True)]
    value = f"{statistics.median(per_s):,.0f}/s = {spread(ratios)}x {of}"
    return Row(name, value, f">= {ratio:g}x", statistics.median(ratios) >= ratio, settles=settles)


def below(
    name: str,
    values: Sequence[float],
    limit: float,
    unit: str,
    *,
    show: Callable[[float], str] = "{:.2f}".format,
    settles: str = "",
) -> Row:
    """A figure whose median must stay below another one."""
    value = f"{spread(values, show)} {unit}"
    return Row(name, value, f"< {limit:g} {unit}", statistics.median(values) < limit, settles=settles)


def print_row(row: Row) -> None:
    """Writes one line for a terminal."""
    print(f"  {row.name:<60} {row.value:>46}  {row.target:>10}  {row.verdict}", flush=True)


def to_markdown(rows: Sequence[Row]) -> str:
    """The same as a table of a document."""
    lines = ["| what | measured | target | |", "|---|---:|---:|---|"]
    lines += [f"| {row.name} | {row.value} | {row.target} | {row.verdict} |" for row in rows]
    return "\n".join(lines) + "\n"


def read_rows(text: str, name: str) -> list[Row]:
    """The rows of a table between its marks in a document; empty where there is none."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    lines = found[1].splitlines()[2:] if found else []
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [Row(what, value, target, verdict == "met") for what, value, target, verdict in cells]


def put(text: str, name: str, content: str) -> str:
    """Puts content between the marks `<!-- NAME -->` and `<!-- /NAME -->` of a document."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda match: match[1] + content + match[2], text)
