"""Every target of the design, and which rows settle it."""

import itertools
from collections.abc import Mapping, Sequence

from bench.table import Row

TARGETS = {
    "cold-reads": "cold styles and product through the real routes against pgbench: >= 0.3x on both (reads)",
    "cold-short": "the same by the short way through the framework: >= 0.45x styles, >= 0.6x product (scale)",
    "warm-mix": "warm mix, coherent memory: >= 8x a query-a-request server, i.e. >= 20,000/s on the reference machine",
    "cold-p99": "99th percentile at 32 connections, cold mix: < 50 ms, no error",
    "causal": "causal reads right after a write, idle cluster: p99 < 10 ms; a token costs <= 10 % of throughput",
    "pages": "last page against first page: <= 1.5x, exact, also while rows come and go",
    "lone": "one lone request: product < 2 ms, styles < 3 ms at the median",
    "hot": "hot-SKU commands, 64 clients: >= 1.2x pgbench's best, >= 2x pgbench at 64, >= 10x a unit of work a request",
    "spread": "spread commands: >= 5x a unit of work a request",
    "import": "import of the full catalogue: <= 1.5x plain copying; memory < 300 MB",
    "headline": "8,000 reads/s of the mix through the proxy, no error, p99 < 100 ms, while 500 commands/s run",
}


def judge(results: Mapping[str, Sequence[Row]], before: Sequence[Row] = ()) -> list[Row]:
    """A row for every target and for each row that settles a part of it, in the design's order.

    Args:
        results: what this run has measured, by subject.
        before: what an earlier run has judged; it stays where this one has measured nothing.
    """
    rows = [row for subject in results.values() for row in subject if row.settles]
    judged = []
    for key, words in TARGETS.items():
        parts = [row for row in rows if row.settles == key]
        if not parts and (kept := _group_of(words, before)):
            judged += kept
            continue
        met = bool(parts) and all(row.is_met for row in parts)
        verdict = f"{sum(row.is_met for row in parts)} of {len(parts)}" if parts else "not measured"
        judged.append(Row(f"**{words}**", verdict, "all" if parts else "", met))
        judged += [Row(row.name, row.value, row.target, row.is_met) for row in parts]
    return judged


def _group_of(words: str, judged: Sequence[Row]) -> list[Row]:
    """A target's row, and those below it that settle it."""
    names = [row.name for row in judged]
    if f"**{words}**" not in names:
        return []
    first = names.index(f"**{words}**")
    parts = itertools.takewhile(lambda row: not row.name.startswith("**"), judged[first + 1 :])
    return [judged[first], *parts]
