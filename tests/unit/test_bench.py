"""What the bench makes of what it has measured; nothing is measured here."""

import re
import sysconfig
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import headline, load, processes, report, rounds, sampling, scaling, stand, table, targets
from bench.costs import KEPT

TOP = Path(__file__).resolve().parents[2]
SAID = """
  Latency Distribution
     50%    1.50ms
     99%  250.00us
  800 requests in 1.00s, 1.00MB read
  Socket errors: connect 0, read 1, write 0, timeout 2
  Non-2xx or 3xx responses: 4
Requests/sec:    800.50
late by 0 ms
late by 16 ms
"""


def test_everything_takes_its_turn_once_a_round_and_each_round_begins_with_another_one() -> None:
    """A machine that slows down in the middle of a round slows down another one each time."""
    order: list[str] = []
    measures = {name: lambda name=name: order.append(name) for name in "abc"}
    seen = rounds.take_turns(3, measures, prepare=lambda: order.append("-"))
    assert "".join(order) == "-abc-bca-cab"
    assert {name: len(values) for name, values in seen.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    """Not the ratio of medians of different rounds (100 : 100): the machine slowed down for both at a time."""
    row = table.at_least("it", [90, 200, 100], [100, 100, 250], 0.95, of="base")
    assert (row.value, row.verdict) == ("100/s = 0.90 (0.40..2.00)x base", "MISSED")


def test_a_target_is_met_by_all_rows_that_settle_it() -> None:
    """One row that missed it is enough; one that was not measured has no verdict."""
    rows = [
        table.Row("hot", "1.3x", ">= 1.2x", settles="hot"),
        table.Row("hot", "9x", ">= 10x", is_met=False, settles="hot"),
        table.Row("spread", "6x", ">= 5x", settles="spread"),
    ]
    judged = {row.name: row for row in targets.judge({"commands": rows}) if row.name.startswith("**")}
    verdicts = {key: judged[f"**{words}**"].verdict for key, words in targets.TARGETS.items()}
    assert verdicts == {**dict.fromkeys(targets.TARGETS, ""), "hot": "MISSED", "spread": "met"}


def test_a_target_that_was_not_measured_again_keeps_its_rows() -> None:
    """As they stand in the document; one that was measured again has none of its old ones."""
    hot = [table.Row("hot", "1.3x", ">= 1.2x", settles="hot")]
    spread = [table.Row("spread", "4x", ">= 5x", is_met=False, settles="spread")]
    document = table.put(
        "<!-- targets -->\n<!-- /targets -->\n", "targets", table.to_markdown(targets.judge({"commands": hot + spread}))
    )
    before = table.read_rows(document, "targets")
    assert table.to_markdown(targets.judge({}, before)) == table.to_markdown(before)
    again = targets.judge({"commands": [table.Row("spread", "6x", ">= 5x", settles="spread")]}, before)
    told = [(row.name, row.value, row.verdict) for row in again if not row.name.startswith("**")]
    assert told == [("hot", "1.3x", "met"), ("spread", "6x", "met")]


def test_every_target_is_settled_by_some_row_and_no_row_settles_another() -> None:
    """A misspelt key would leave a target without a verdict."""
    code = "".join(path.read_text(encoding="utf-8") for path in (TOP / "bench").glob("*.py"))
    assert set(re.findall(r'settles="([a-z0-9-]+)"', code)) == set(targets.TARGETS)


def test_every_table_of_the_bench_has_its_place_in_the_document() -> None:
    """A table without marks would be lost without a word."""
    from bench.__main__ import SUBJECTS

    document = (TOP / "docs" / "performance.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- /([a-z]+) -->", document)) == {*SUBJECTS, "targets", "machine"}


@pytest.mark.parametrize(
    ("title", "doing"),
    [
        ("postgres: pg2: startup recovering 000000010000000300000B9", "replay"),
        ("postgres: pg1: walsender replicator 127.0.0.1(5000) streaming 3/1", "log out"),
        ("postgres: pg2: walreceiver streaming 3/1", "log in"),
        ("postgres: pg2: reader atelier 127.0.0.1(5000) idle", "backends"),
        ("postgres: pg1: checkpointer", "rest"),
    ],
)
def test_a_servers_process_is_counted_by_what_it_does(title: str, doing: str) -> None:
    """PostgreSQL tells it in the title."""
    assert processes.name_doing(title) == doing


def test_a_replica_that_has_all_is_not_behind() -> None:
    """However long ago the last commit was."""
    lag = sampling.judge_lag({"lsn": 500, "at_s": 10.1, "since_ms": 60_000.0}, [(9.0, 400), (10.0, 500)])
    assert lag == sampling.Lag(0.0, 0)


def test_a_replica_is_no_further_behind_than_since_the_primary_was_where_it_is() -> None:
    """Its last commit was a minute ago, but only 200 ms ago there was no more to replay."""
    seen = [(9.0, 400), (9.8, 500), (10.0, 700)]
    lag = sampling.judge_lag({"lsn": 500, "at_s": 10.0, "since_ms": 60_000.0}, seen)
    assert (round(lag.ms), lag.wal_bytes) == (200, 200)


def test_the_generators_report_is_read_with_its_errors_and_the_latest() -> None:
    """Broken connections and refusals count alike; of several threads the latest."""
    assert load.parse_load(SAID) == load.Load(800.5, 1.5, 0.25, errors=7, late_ms=16.0)


def test_commands_can_be_drawn_as_products_are_read(tmp_path: Path) -> None:
    """From a file of the products; or evenly from a list."""
    assert str(tmp_path / "skus.txt") in load.Commands("key", tmp_path / "skus.txt").script()
    assert "local skus = {3, 5}" in load.Commands("key", [3, 5]).script()


def test_no_two_loads_ask_for_the_same_in_the_same_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Or whatever the first one asked for would be in memory for the second."""
    monkeypatch.setattr(load, "find_tool", lambda *_: "true")
    scripts = set()
    for _ in range(4):
        what = load.Reads(load.MIX, (1, 100))
        load.start_load("http://127.0.0.1:1", what, tmp_path, seconds=1, connections=1, per_s=None).communicate()
        scripts.add((tmp_path / "load-reads.lua").read_text())
    assert len(scripts) == 4


def test_the_frames_of_a_profile_are_the_innermost_ones_by_their_share() -> None:
    """One function called from two places is one frame."""
    raw = "main;loop;answer 6\nmain;answer 2\nmain;loop;send 2\n"
    assert headline.top_frames(raw) == [("answer", 0.8), ("send", 0.2)]


@pytest.mark.parametrize(("asked", "words"), [("'--enable-optimizations'", "with "), ("'--prefix=/'", "without ")])
def test_the_machine_line_tells_how_python_was_built(monkeypatch: pytest.MonkeyPatch, asked: str, words: str) -> None:
    """A plain build costs a fifth."""
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: asked)
    assert f"configured {words}--enable-optimizations" in stand.describe_python()


def test_the_hit_rate_is_that_of_zipfs_law() -> None:
    """The sum of 1/k over what is kept against the sum over all."""
    exact = sum(1 / k for k in range(1, 1_001)) / sum(1 / k for k in range(1, 50_001))
    assert scaling.hit_rate(50_000, 1_000) == pytest.approx(exact, rel=1e-3)
    assert scaling.hit_rate(50_000, 60_000) == 1


def test_the_page_on_scaling_says_what_follows_from_the_measured_rows() -> None:
    """Run `python -m bench.scaling` after a change of the rows, of a default or of a role's limit."""
    document, measured = (path.read_text(encoding="utf-8") for path in (scaling.DOCUMENT, scaling.MEASURED))
    assert scaling.rewrite(document, measured) == document


def test_a_larger_cost_needs_more_cores_and_an_unknown_one_leaves_them_open() -> None:
    """At 70 us and 92 % from memory, 124 and 163 us else, 100,000 a second are 7.6 busy cores, so 11 at 70 %."""
    assert "| readers: cores at 70 %, a process each | 11 | 109 |" in write_sizes(memory_us=70)
    assert "| readers: cores at 70 %, a process each | 15 | 148 |" in write_sizes(memory_us=100)
    document = "<!-- sizes -->\n<!-- /sizes -->"
    assert "a process each | ? | ? |" in scaling.rewrite(document, "")


def test_a_written_report_changes_what_is_between_its_marks_alone(tmp_path: Path) -> None:
    """Subjects that were not measured stay; the page beside it follows."""
    document = tmp_path / "performance.md"
    document.write_text("# a\n<!-- machine -->\nold\n<!-- /machine -->\nb\n<!-- costs -->\n<!-- /costs -->\nc\n")
    (tmp_path / "scaling.md").write_text("<!-- costs -->\n<!-- /costs -->\n")
    rows = {"costs": [table.Row("cold product: service", "124 us")]}
    report.write_report(document, "two cores", rows)
    text = document.read_text()
    assert text.startswith("# a\n<!-- machine -->\ntwo cores\n<!-- /machine -->\nb\n<!-- costs -->\n| what |")
    assert text.endswith("| cold product: service | 124 us |  |  |\n<!-- /costs -->\nc\n")
    assert "| a cold product | service 124 us;" in (tmp_path / "scaling.md").read_text()


def test_curves_are_drawn_from_the_rows_that_have_a_place_on_them() -> None:
    """A point for each; the pictures are well-formed."""
    steps = [table.Row(f"{per_s:,}/s asked", "", figure=ms, at=per_s) for per_s, ms in ((2_000, 5), (8_000, 900))]
    sizes = [
        table.Row(f"{kind}, {size:,} products", "", figure=9_000, at=size)
        for kind in ("warm mix", "cold product", "cold styles")
        for size in (10_000, 100_000, 1_000_011)
    ]
    pictures = report.draw_pictures({"headline": steps, "growth": sizes})
    circle = "{http://www.w3.org/2000/svg}circle"
    points = {name: len(list(ET.fromstring(text).iter(circle))) for name, text in pictures.items()}  # noqa: S314  our own
    assert points == {"knee": 4, "growth": 9}


def write_sizes(*, memory_us: float) -> str:
    """The table of sizes for a cost of an answer from memory; the other costs are fixed."""
    costs = {
        KEPT: 2**30 / 320_000,
        "the mix from memory: service": memory_us,
        "the mix from memory, through the proxy: proxy": 29,
        "cold product: service": 124,
        "cold styles: service": 163,
        "cold product: PostgreSQL's backends": 33,
        "cold styles: PostgreSQL's backends": 86,
        "spread command: replay on a replica": 19,
    }
    lines = "\n".join(f"| {name} | {value:,} |  |  |" for name, value in costs.items())
    return scaling.rewrite("<!-- sizes -->\n<!-- /sizes -->", f"<!-- costs -->\n{lines}\n<!-- /costs -->\n")
