"""The report: one file that needs nothing else, opened in a real browser."""

# ruff: noqa: E501 - tables and scripts keep their lines

import json

import pytest

from loadtest.report.page import write_report
from tests.lab.chromium import open_page

CHARTS = 5


def make_document(**more):
    """The outcome of a run, small but with everything in it."""
    seconds = list(range(100, 130))
    verdicts = [
        {"guarantee": "read your writes", "state": "invalid", "looked_at": 12345, "witness": "session <ann> saw & lost", "ops": [1, 2], "also": 3,
         "only_reported": False},
        {"guarantee": "exactly once", "state": "valid", "looked_at": 9, "witness": "", "ops": [], "also": 0, "only_reported": False},
        {"guarantee": "no oversell", "state": "unknown", "looked_at": 0, "witness": "nothing to look at", "ops": [], "also": 0, "only_reported": False},
        {"guarantee": "long fork", "state": "valid", "looked_at": 5, "witness": "op 4 saw", "ops": [4], "also": 0, "only_reported": True},
    ]  # fmt: skip
    document = {
        "scenario": "planted",
        "summary": "a run that never was </script><script>alert(1)</script>",
        "state": "invalid",
        "breaks": {"stale": 4, "oversold": None, "applied twice": 0},
        "verdicts": verdicts,
        "operations": 100,
        "figures": {
            "reads": 1000, "commands": 200, "refused": 3, "errors": {"no-replica": 7}, "served_by": {"pg2": 10},
            "open_loop_ms": {"p50": 1.5, "p95": 20.0, "p99": 1500.0}, "closed_loop_ms": {"p99": 30.0}, "greatest_ms": 2000.0,
        },
        "phases": [
            {"label": name, "began_s": 100.0 + at, "ended_s": 115.0 + at, "rate_per_s": 40.0, "error_rate": 0.01, "p50_ms": 1.0, "p95_ms": 2.0,
             "p99_ms": None}
            for name, at in (("round-robin", 0), ("least-outstanding", 15))
        ],
        "memory": {"state": "shown", "hits": 812, "looks": 1100},
        "knee": {"requests_per_s": 900, "p95_ms": 20.0, "reached": True},
        "faults": [{"name": "pg2 </script>", "began_s": 105.2, "ended_s": 111.0, "error": ""},
                   {"name": "pg3 frozen", "began_s": 112.0, "ended_s": None, "error": "RuntimeError: no"}],
        "notes": ["a note"],
        "settings": {"seed": 1, "crews": ["2 x Shopper", "1 x Admin"], "sabotage": None},
        "machine": {"cores": 2},
        "series": {
            "at_s": seconds, "p50_ms": [1.0] * 30, "p95_ms": [2.0, None] * 15, "p99_ms": [300.0] * 30, "closed_p99_ms": [3.0] * 30,
            "reads": list(range(30)), "commands": [5] * 30, "errors": [0] * 29 + [7], "lag_ms": {"pg2": [None, 40.0] * 15},
            "nodes": {"pg1": [1] * 30, "pg2": [9] * 30},
        },
    }  # fmt: skip
    return document | more


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A browser."""
    with open_page(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def opened(page, tmp_path):
    """The report in the browser."""
    write_report(tmp_path, make_document())
    page.requests.clear()
    page.complaints.clear()
    page.open(tmp_path / "report.html")
    return page


def test_charts_are_drawn_and_nothing_is_complained_of(opened):
    """Every chart has its lines or areas, and the console is empty."""
    drawn = opened.evaluate(
        "[...document.querySelectorAll('figure')].map(f => f.querySelectorAll('path.series, path.area').length)"
    )
    assert drawn == [4, 2, 1, 1, 2]
    paths = opened.evaluate("[...document.querySelectorAll('path')].map(p => p.getAttribute('d'))")
    assert all(path and "NaN" not in path for path in paths)
    assert opened.evaluate("[...document.querySelectorAll('path')].every(p => p.getBBox().width > 100)")
    assert opened.complaints == []


def test_no_request_leaves_the_page(opened):
    """The file and its empty icon are all it asks for."""
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert len(opened.requests) <= 2


def test_verdicts_stand_on_top_with_their_witness(opened):
    """The table comes before the charts and tells in words what was wrong; text is text, never markup."""
    rows = opened.evaluate("[...document.querySelectorAll('.verdicts tbody tr')].map(r => r.innerText)")
    assert "✗ invalid" in rows[0]
    assert "session <ann> saw & lost. And 3 more like it." in rows[0]
    assert "Every command has one whole effect or none" in rows[1]
    assert "reported" in rows[3]
    assert opened.evaluate("document.querySelector('.breaks').textContent") == "4 stale, ? oversold, 0 applied twice"
    above = "document.querySelector('.verdicts').getBoundingClientRect().bottom < document.querySelector('svg').getBoundingClientRect().top"
    assert opened.evaluate(above)


def test_faults_lie_on_the_time_axis_of_every_chart(opened):
    """A fault is as wide and stands as far in on every chart as it was long and late."""
    boxes = opened.evaluate(
        "[...document.querySelectorAll('rect.fault')].map(r => [r.x.baseVal.value, r.width.baseVal.value])"
    )
    assert len(boxes) == 2 * CHARTS
    assert len({tuple(box) for box in boxes}) == 2
    (first_x, first_width), (second_x, _) = sorted({tuple(box) for box in boxes})
    per_second = (second_x - first_x) / (112.0 - 105.2)
    assert first_width == pytest.approx(5.8 * per_second, rel=0.01)


def test_pointer_tells_the_figures_of_a_second(opened):
    """Moving over a chart shows the values there."""
    shown = opened.evaluate(
        """(() => { const svg = document.querySelectorAll('svg')[1], box = svg.getBoundingClientRect();
        svg.dispatchEvent(new PointerEvent('pointermove', { clientX: box.right - 8, clientY: box.top + 20 }));
        return svg.parentElement.querySelector('.tip').textContent; })()"""
    )
    assert shown == "29 s  ·  reads 29  ·  commands 5"


def test_empty_run_has_a_report_too(page, tmp_path):
    """A run without a single request says so and complains of nothing."""
    write_report(tmp_path, make_document(series={"at_s": []}, faults=[], phases=[]))
    page.complaints.clear()
    page.open(tmp_path / "report.html")
    assert page.evaluate("document.getElementById('charts').textContent") == "No requests were made."
    assert page.complaints == []


def test_summary_is_the_whole_outcome(tmp_path):
    """`summary.json` holds what the page shows."""
    write_report(tmp_path, make_document())
    assert json.loads((tmp_path / "summary.json").read_text()) == make_document()
