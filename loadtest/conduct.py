"""Carries out what the command line asks for: one run from beginning to report."""

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import locust  # isort: skip - first of all: it replaces the blocking parts of the standard library
import psutil

from loadtest.checkers.registry import conclude, exit_status
from loadtest.checkers.verdict import State
from loadtest.faults.embedded import EmbeddedFailedError
from loadtest.plan import Plan, Result
from loadtest.progress import show_progress
from loadtest.report.page import write_report
from loadtest.report.summary import summarise, tell_in_one_line
from loadtest.run import Lab
from loadtest.sabotage.registry import tell_whether_caught
from loadtest.sabotage.service import IN_SERVICE
from loadtest.sabotage.tamper import NothingToBreakError
from loadtest.scenarios.registry import SCENARIOS
from loadtest.world import SetUpError


class UnfitError(ValueError):
    """The command line asks for what cannot be."""


def list_scenarios() -> Iterator[tuple[str, str]]:
    """Names and one line each."""
    for scenario in SCENARIOS.values():
        yield scenario.name, scenario.summary


def run_scenario(name: str, arguments: argparse.Namespace) -> int:
    """Runs one scenario and writes its report; the exit status tells the verdict.

    Raises:
        UnfitError: there is no such scenario, or it does not go with the other options.
    """
    plan = make_plan(name, arguments)
    plan.out.mkdir(parents=True, exist_ok=True)
    lab = Lab(plan, say=lambda line: print(line, file=sys.stderr, flush=True))
    try:
        with show_progress(lab):
            result = lab.run()
    except (EmbeddedFailedError, SetUpError) as error:
        raise UnfitError(str(error)) from error
    except NothingToBreakError:
        raise UnfitError(f"the history holds nothing that {plan.sabotage} could break") from None
    return report(plan, result)


def make_plan(name: str, arguments: argparse.Namespace) -> Plan:
    """Reads the options of a run.

    Raises:
        UnfitError: they do not go together.
    """
    if name not in SCENARIOS:
        raise UnfitError(f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    scenario = SCENARIOS[name]
    if arguments.url and scenario.needs_cluster and not scenario.phases:
        raise UnfitError(f"{name} breaks nodes: it runs with --embedded only")
    if arguments.url and arguments.setting:
        raise UnfitError("--setting is for a service that the lab starts; the one at --url has its own")
    if arguments.url and arguments.sabotage in IN_SERVICE:
        raise UnfitError(f"{arguments.sabotage} is done in a service that the lab starts: it runs with --embedded only")
    api_key = arguments.api_key or os.environ.get("LOADTEST_API_KEY", "")
    if arguments.url and not api_key:
        raise UnfitError("--url needs --api-key, or LOADTEST_API_KEY in the environment")
    return Plan(
        scenario=scenario,
        duration_s=arguments.duration or scenario.duration_s,
        seed=arguments.seed,
        rate=arguments.rate,
        urls=tuple(arguments.url),
        api_key=api_key,
        data_dir=arguments.data_dir,
        settings=dict(arguments.setting),
        sabotage=arguments.sabotage,
        p95_limit_ms=arguments.p95_limit,
        out=arguments.out or Path("lab-reports") / name,
    )


def report(plan: Plan, result: Result) -> int:
    """Writes the report, says the verdict in one line, and gives the exit status."""
    document = summarise(plan, result, machine=describe_machine())
    write_report(plan.out, document)
    state = conclude(result.verdicts)
    print(tell_in_one_line(document, plan.out / "report.html"))
    for verdict in result.verdicts:
        if verdict.state is not State.VALID:
            print(f"  {verdict.guarantee}: {verdict.state.value}: {verdict.witness}")
    for note in result.notes:
        print(f"  note: {note}")
    if plan.sabotage:
        print(tell_whether_caught(plan.sabotage, result.verdicts))
    return exit_status(state)


def describe_machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "locust": locust.__version__,
        "load_1m": round(psutil.getloadavg()[0], 1),
    }
