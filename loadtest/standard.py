"""The standard set: every scenario on one cluster, then every sabotage, which must be caught.

What a proxy breaks, or a service of the run's own, needs a run of its own; what is done to a history is done to the one
that a scenario has left.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.checkers.registry import EXIT_INVALID, EXIT_UNKNOWN, EXIT_VALID
from loadtest.faults.embedded import Embedded
from loadtest.sabotage.registry import SABOTAGES, Sabotage
from loadtest.scenarios.registry import SCENARIOS

_DURATION_S = 20.0
_SABOTAGE_S = 10.0
_PHASE_S = 4.0
_LIMIT_S = 400
# A run that ends takes its services along, each in good order.
_END_S = 90
_STATES = {EXIT_VALID: "valid", EXIT_INVALID: "invalid", EXIT_UNKNOWN: "unknown"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of the set.

    Attributes:
        name: of the scenario, and of the sabotage.
        as_wanted: it was valid; of a sabotage: it was caught by the right checker.
        state: what the run ended with.
        line: what it said of itself.
        took_s: all in all.
    """

    name: str
    as_wanted: bool
    state: str
    line: str
    took_s: float


def run_standard_set(arguments: argparse.Namespace) -> int:
    """Runs everything, tells each in a line and all in a table; ends with 0 when everything was as it should be."""
    out = arguments.out or Path("lab-reports")
    began_s = time.monotonic()
    with _cluster(arguments) as (where, revive):
        outcomes = [_run_one(run, where, revive) for run in _choose_runs(arguments, out)]
    Console().print(draw_outcomes(outcomes))
    wrong = [outcome.name for outcome in outcomes if not outcome.as_wanted]
    print(
        f"{len(outcomes)} runs in {time.monotonic() - began_s:.0f} s: "
        + (f"NOT as they should be: {', '.join(wrong)}" if wrong else "all as they should be")
    )
    if not wrong:
        return EXIT_VALID
    return (
        EXIT_INVALID
        if any(outcome.state == "invalid" for outcome in outcomes if not outcome.as_wanted)
        else EXIT_UNKNOWN
    )


@contextmanager
def _cluster(arguments: argparse.Namespace) -> Iterator[tuple[list[str], Callable[[], None]]]:
    """The options that say where to run, and what brings that back should a run have ended it."""
    if arguments.url:
        words = [word for url in arguments.url for word in ("--url", url)]
        yield words + (["--api-key", arguments.api_key] if arguments.api_key else []), lambda: None
        return
    settings = dict(arguments.setting)
    data_dir = arguments.data_dir
    embedded = Embedded.adopt(data_dir, settings=settings) if data_dir else Embedded.start(settings=settings)
    try:
        words = [f"--setting={name}={value}" for name, value in settings.items()]
        yield [f"--data-dir={embedded.data_dir}", *words], embedded.revive
    finally:
        embedded.close()


@dataclass(frozen=True, slots=True)
class Run:
    """One run to be made: its name, its words on the command line, and the sabotage in it, if any."""

    label: str
    words: list[str]
    sabotage: str | None = None
    needs_service: bool = True


def _choose_runs(arguments: argparse.Namespace, out: Path) -> Iterator[Run]:
    duration_s = arguments.duration or _DURATION_S
    common = [f"--seed={arguments.seed}", f"--rate={arguments.rate}", f"--p95-limit={arguments.p95_limit}"]
    for name, scenario in SCENARIOS.items():
        if _is_wanted(name, arguments) and not (arguments.url and scenario.needs_cluster):
            # A phase shorter than this has no figures of its own.
            length_s = max(duration_s, _PHASE_S * len(scenario.phases))
            yield Run(name, ["run", name, *common, f"--duration={length_s}", f"--out={out / name}"])
    for name, sabotage in SABOTAGES.items():
        if _is_wanted(name, arguments) and _has_own_run(sabotage, arguments):
            words = [sabotage.shown_by, *common, f"--duration={min(duration_s, _SABOTAGE_S)}", f"--sabotage={name}"]
            yield Run(f"sabotage {name}", ["run", *words, f"--out={out / f'sabotage-{name}'}"], sabotage=name)
    for name, sabotage in SABOTAGES.items():
        history = out / sabotage.shown_by / "history.jsonl"
        if _is_wanted(name, arguments) and not sabotage.is_live and not _has_own_run(sabotage, arguments):
            words = ["check", str(history), f"--sabotage={name}"]
            yield Run(f"sabotage {name}", words, sabotage=name, needs_service=False)


def _has_own_run(sabotage: Sabotage, arguments: argparse.Namespace) -> bool:
    """What is done to a history needs a run where none of the chosen scenarios leaves one."""
    if sabotage.is_live:
        return not arguments.url
    return not _is_wanted(sabotage.shown_by, arguments)


def _is_wanted(name: str, arguments: argparse.Namespace) -> bool:
    return not arguments.only or name in arguments.only


def _run_one(run: Run, where: list[str], revive: Callable[[], None]) -> Outcome:
    began_s = time.monotonic()
    words = run.words
    if run.needs_service:
        revive()
        words = [*words, *where]
    try:
        command = [sys.executable, "-m", "loadtest", *words]
        told, status = run_to_its_end(command, limit_s=_LIMIT_S)
        if not run.needs_service:
            told = told.rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        told, status = f"{run.label}: took longer than {_LIMIT_S} s", EXIT_UNKNOWN
    as_wanted = f"sabotage {run.sabotage}: caught by" in told if run.sabotage else status == EXIT_VALID
    print(told, flush=True)
    return Outcome(run.label, as_wanted, _STATES.get(status, "unknown"), told, time.monotonic() - began_s)


def run_to_its_end(command: list[str], *, limit_s: float) -> tuple[str, int]:
    """Runs a command; one that is interrupted, or takes too long, is left the time to end what it has started.

    It has a session of its own, so that Ctrl-C reaches it through here, and once: a second one would break off its end.

    Args:
        command: a run of the lab.
        limit_s: the bound on it.

    Returns:
        What it printed, and its exit status.

    Raises:
        TimeoutExpired: it took longer.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            told, _ = process.communicate(timeout=limit_s)
        except BaseException:
            process.send_signal(signal.SIGINT)
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_END_S)
            finally:
                process.kill()
            raise
    return told.strip(), process.returncode


def draw_outcomes(outcomes: list[Outcome]) -> Table:
    """One row a run."""
    table = Table("", "run", "verdict", "seconds")
    for outcome in outcomes:
        mark = "[green]✓[/green]" if outcome.as_wanted else "[red]✗[/red]"
        table.add_row(mark, outcome.name, outcome.state, f"{outcome.took_s:.0f}")
    return table
