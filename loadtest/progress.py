"""What a terminal shows while a run is on: rate, 99th percentile, errors, lag, the fault of the moment."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.metrics import Meter, Second
from loadtest.run import Lab

_REFRESH_S = 0.5
_SHOWN_S = 30
_STEPS = "▁▂▃▄▅▆▇█"
_BAR_COLUMNS = 30


@contextmanager
def show_progress(lab: Lab) -> Iterator[None]:
    """Shows a few lines that renew themselves on a terminal; nothing where there is none."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    done = threading.Event()
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        lab.say = lambda line: live.console.print(escape(line), style="dim")

        def renew() -> None:
            while not done.wait(_REFRESH_S):
                live.update(draw(lab) if lab.load_began_s is not None else "")

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=5)


def draw(lab: Lab) -> Group:
    """How far the run is, and its figures over the last seconds."""
    now_s = lab.clock()
    passed_s = min(now_s - (lab.load_began_s or now_s), lab.plan.duration_s)
    head = Table.grid(padding=(0, 2))
    name = Text(lab.scenario.name, style="bold")
    head.add_row(
        name,
        ProgressBar(total=lab.plan.duration_s, completed=passed_s, width=_BAR_COLUMNS),
        f"{passed_s:.0f} of {lab.plan.duration_s:.0f} s" if lab.running else "the load is over",
    )
    first = max(int(lab.load_began_s or 0), int(now_s) - _SHOWN_S)
    return Group(head, draw_figures(lab.meter, range(first, int(now_s)), lab.timeline.current))


def draw_figures(meter: Meter, shown: range, fault: str) -> Table:
    """One row a figure: the last of some whole seconds in digits, and all of them as a curve."""
    seconds = [meter.seconds.get(second, Second()) for second in shown]
    now = seconds[-1] if seconds else Second()
    p99_ms = now.latency.percentile_ms(99)
    errors = ", ".join(f"{name} {count}" for name, count in meter.all.errors.most_common(3))
    lags = "  ".join(f"{node} {lag_ms:.0f}" for node, lag_ms in sorted(now.lag_ms.items()))
    table = Table.grid(padding=(0, 2))
    rows: list[tuple[str, Callable[[Second], float], str]] = [
        ("requests a second", lambda s: s.reads + s.commands, f"{now.reads} reads, {now.commands} commands"),
        ("p99, ms", lambda s: s.latency.percentile_ms(99) or 0.0, "-" if p99_ms is None else f"{p99_ms:.0f}"),
        ("errors", lambda s: s.errors.total(), f"[red]{escape(errors)}[/red]" if errors else "none"),
        ("replica lag, ms", lambda s: max(s.lag_ms.values(), default=0.0), escape(lags)),
    ]
    for name, figure, told in rows:
        table.add_row(Text(name, style="dim"), draw_curve([figure(second) for second in seconds]), told)
    table.add_row(Text("fault", style="dim"), Text(fault or "none", style="bold yellow" if fault else ""), "")
    return table


def draw_curve(values: Sequence[float]) -> str:
    """A curve of one character a value, from zero to the greatest."""
    greatest = max(values, default=0.0)
    steps = [round(value / greatest * (len(_STEPS) - 1)) if greatest else 0 for value in values]
    return "".join(_STEPS[step] for step in steps).rjust(_SHOWN_S)
