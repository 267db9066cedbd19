"""The report as one HTML file that needs nothing else: no network, no other file."""

import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loadtest.checkers.registry import MEANINGS
from loadtest.report.summary import tell_breaks

_FOLDER = Path(__file__).parent
_MARKS = {"valid": "✓", "invalid": "✗", "unknown": "?"}


def write_report(folder: Path, document: dict[str, Any]) -> None:
    """Writes `summary.json` and `report.html` into a folder."""
    (folder / "summary.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render(document), encoding="utf-8")


def render(document: dict[str, Any]) -> str:
    """The page."""
    # "</" would end the script element, whatever stands before it.
    data = json.dumps({name: document[name] for name in ("series", "faults", "phases")}).replace("</", "<\\/")
    parts = {
        "title": f"{document['scenario']}: {document['state']}",
        "state": document["state"],
        "heading": f"{_MARKS[document['state']]} {document['state']}",
        "scenario": document["scenario"],
        "summary": document["summary"],
        "breaks": tell_breaks(document["breaks"]),
        "style": (_FOLDER / "page.css").read_text(encoding="utf-8"),
        "script": (_FOLDER / "charts.js").read_text(encoding="utf-8"),
        "data": data,
        "verdicts": render_verdicts(document["verdicts"]),
        "figures": render_figures(document),
        "phases": render_phases(document),
        "faults": render_faults(document),
        "settings": render_pairs({**document["settings"], **document["machine"]}),
    }
    page = (_FOLDER / "page.html").read_text(encoding="utf-8")
    raw = {"style", "script", "data", "verdicts", "figures", "phases", "faults", "settings"}
    for name, value in parts.items():
        page = page.replace(f"{{{{{name}}}}}", value if name in raw else html.escape(value))
    return page


def render_verdicts(verdicts: Iterable[dict[str, Any]]) -> str:
    """One row a guarantee."""
    return "".join(
        f'<tr class="{verdict["state"]}"><td class="mark">{tell_state(verdict)}</td>'
        f"<th scope=row>{html.escape(verdict['guarantee'])}</th><td class=number>{verdict['looked_at']:,}</td>"
        f"<td class={'witness' if verdict['witness'] else 'meaning'}>{html.escape(tell_verdict(verdict))}</td></tr>"
        for verdict in verdicts
    )


def tell_state(verdict: dict[str, Any]) -> str:
    """The first column."""
    state: str = verdict["state"]
    return "reported" if verdict["only_reported"] else f"{_MARKS[state]} {state}"


def tell_verdict(verdict: dict[str, Any]) -> str:
    """The last column: the witness, and how many more there are; without one, what the guarantee is."""
    meaning = MEANINGS.get(verdict["guarantee"], "")
    if not verdict["witness"]:
        return f"Never seen. {meaning}" if verdict["only_reported"] else meaning
    more = f". And {verdict['also']} more like it." if verdict["also"] else ""
    return f"{verdict['witness']}{more}"


def render_figures(document: dict[str, Any]) -> str:
    """The few figures that matter most, and each with its name."""
    figures = document["figures"]
    open_ms, closed_p99_ms = figures["open_loop_ms"], figures["closed_loop_ms"].get("p99")
    errors = sum(figures["errors"].values())
    cards = {
        "reads": f"{figures['reads']:,}",
        "commands": f"{figures['commands']:,}",
        "refused by the rules": f"{figures['refused']:,}",
        "errors": f"{errors:,}"
        + "".join(f"<small>{html.escape(name)} {count:,}</small>" for name, count in figures["errors"].items()),
        "p99, intended start": f"{tell_ms(open_ms['p99'])}<small>closed loop {tell_ms(closed_p99_ms)}</small>",
        "p95": f"{tell_ms(open_ms['p95'])}<small>p50 {tell_ms(open_ms['p50'])}</small>",
    }
    if memory := document["memory"]:
        shown = f"{memory['hits']:,}" if memory["hits"] else memory["state"]
        cards["from memory"] = f"{shown}<small>asked {memory['looks']:,} times</small>"
    if knee := document["knee"]:
        cards["knee, requests a second"] = f"{knee['requests_per_s']:,}" + (
            f"<small>p95 {tell_ms(knee['p95_ms'])}</small>"
            if knee["reached"]
            else "<small>not reached: the limits held to the end</small>"
        )
    return "".join(f"<div class=card><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cards.items())


def render_phases(document: dict[str, Any]) -> str:
    """A table of the phases, where there is more than one."""
    phases = document["phases"]
    if len(phases) < 2:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{html.escape(phase['label'])}</th><td class=number>{phase['rate_per_s']:,}</td>"
        f"<td class=number>{phase['error_rate']:.1%}</td>"
        + "".join(f"<td class=number>{tell_ms(phase[name])}</td>" for name in ("p50_ms", "p95_ms", "p99_ms"))
        + "</tr>"
        for phase in phases
    )
    names = ("requests a second", "errors", "p50", "p95", "p99")
    head = "<th scope=col>phase</th>" + "".join(f"<th scope=col class=number>{name}</th>" for name in names)
    return f"<h2>Side by side</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def render_faults(document: dict[str, Any]) -> str:
    """What was broken when, on the charts' time axis, and what the lab has to say beside it."""
    zero_s = document["series"]["at_s"][0] if document["series"]["at_s"] else 0
    rows = "".join(render_fault(span, zero_s) for span in document["faults"])
    head = (
        "<th scope=col>fault</th><th scope=col class=number>from</th><th scope=col class=number>to</th>"
        "<th scope=col>what went wrong with it</th>"
    )
    table = f"<h2>Faults</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in document["notes"])
    return table + (f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "")


def render_fault(span: dict[str, Any], zero_s: float) -> str:
    """One row; a fault that was never mended has no end."""
    times = ["-" if at_s is None else f"{at_s - zero_s:.1f} s" for at_s in (span["began_s"], span["ended_s"])]
    cells = "".join(f"<td class=number>{at}</td>" for at in times)
    return f"<tr><th scope=row>{html.escape(span['name'])}</th>{cells}<td>{html.escape(span['error'])}</td></tr>"


def render_pairs(pairs: dict[str, Any]) -> str:
    """Names and values."""
    return "".join(
        f"<tr><th scope=row>{html.escape(name.replace('_', ' '))}</th><td>{_tell_value(value)}</td></tr>"
        for name, value in pairs.items()
        if value is not None
    )


def tell_ms(value: float | None) -> str:
    """Milliseconds for people."""
    if value is None:
        return "-"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def _tell_value(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return "<br>".join(html.escape(str(each)) for each in values)
