"""What a terminal shows while a run is on: rate, 99th percentile, errors, lag, the fault of the moment."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from loadtest.metrics import Second
from loadtest.run import Lab

_REFRESH_S = 0.5


@contextmanager
def show_progress(lab: Lab) -> Iterator[None]:
    """Shows a line that renews itself on a terminal; nothing where there is none."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    done = threading.Event()
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        lab.say = lambda line: live.console.print(line, style="dim")

        def renew() -> None:
            while not done.wait(_REFRESH_S):
                live.update(draw(lab, lab.meter.recent(lab.clock())))

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=5)


def draw(lab: Lab, second: Second) -> Table:
    """One row of figures of the last whole second."""
    p99_ms = second.latency.percentile_ms(99)
    errors = lab.meter.all.errors.total()
    table = Table(title=f"{lab.scenario.name}, {lab.clock():.0f} s", title_justify="left")
    for name in ("reads/s", "commands/s", "p99 ms", "errors", "lag ms", "fault"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    lag = " ".join(f"{node} {lag_ms:.0f}" for node, lag_ms in sorted(second.lag_ms.items()) if lag_ms)
    table.add_row(
        str(second.reads),
        str(second.commands),
        "-" if p99_ms is None else f"{p99_ms:.0f}",
        f"[red]{errors}[/red]" if errors else "0",
        lag or "0",
        f"[yellow]{lab.timeline.current}[/yellow]" if lab.timeline.current else "",
    )
    return table
