"""`python -m loadtest`: list scenarios, run one or all, check a history that was recorded elsewhere."""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.checkers.registry import CHECKERS, EXIT_UNKNOWN, check_history, conclude, doubt_all, exit_status
from loadtest.history.record import MalformedHistoryError
from loadtest.history.store import StoredHistory
from loadtest.sabotage.registry import SABOTAGES, tell_whether_caught
from loadtest.sabotage.tamper import TAMPERS, NothingToBreakError, tamper_with


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0 valid, 1 invalid, 2 unknown or could not be done."""
    arguments = make_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return complain("interrupted")
    except (OSError, ValueError) as error:
        return complain(str(error))


def complain(line: str) -> int:
    """One line about what could not be done."""
    print(f"loadtest: {line}", file=sys.stderr)
    return EXIT_UNKNOWN


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="loadtest", description="Load, faults, and a verdict that can be trusted.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run one scenario")
    run.add_argument("scenario", metavar="NAME")
    add_run_options(run)
    run.set_defaults(run=run_one)
    every = commands.add_parser("all", help="run every scenario, and some sabotages that must be caught")
    add_run_options(every)
    every.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="these scenarios and sabotages alone"
    )
    every.set_defaults(run=run_all)
    listing = commands.add_parser("list", help="name scenarios, checkers and sabotages")
    listing.set_defaults(run=list_names)
    check = commands.add_parser("check", help="check recorded histories, one file a process")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check.add_argument(
        "--sabotage",
        choices=sorted(TAMPERS),
        metavar="NAME",
        help="judge a copy that is broken so: " + ", ".join(TAMPERS),
    )
    check.add_argument("--only", action="append", choices=list(CHECKERS), metavar="CHECKER", help="this checker alone")
    check.set_defaults(run=check_files)
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What `run` and `all` have in common."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--url", action="append", default=[], help="a running service; more than one for balance-compare"
    )
    where.add_argument("--embedded", action="store_true", help="a cluster of its own (the default without --url)")
    where.add_argument(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        help="a running embedded cluster (`atelier up --detach`), to be broken and mended",
    )
    parser.add_argument("--api-key", default="", help="for --url: with all scopes; else LOADTEST_API_KEY")
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        type=setting,
        metavar="NAME=VALUE",
        help="of the service, such as ATELIER_CACHE_BYTES=0; with --data-dir: what it must have been started with",
    )
    parser.add_argument("--duration", type=seconds, metavar="SECONDS", help="of the load")
    parser.add_argument("--rate", type=factor, default=1.0, metavar="FACTOR", help="multiplies all rates")
    parser.add_argument("--seed", type=int, default=1, help="of every chance in it")
    parser.add_argument("--p95-limit", type=seconds, default=200.0, metavar="MS", help="for browse-ramp")
    parser.add_argument(
        "--sabotage",
        choices=sorted(SABOTAGES),
        metavar="NAME",
        help="break a promise on purpose: " + ", ".join(SABOTAGES),
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for history and report; else lab-reports/NAME")


def seconds(text: str) -> float:
    """A time above zero."""
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError("between 0 and 86400")
    return value


def setting(text: str) -> tuple[str, str]:
    """A variable of the service's environment, and its value."""
    name, equals, value = text.partition("=")
    if not equals or not name.startswith("ATELIER_"):
        raise argparse.ArgumentTypeError("NAME=VALUE, with a name that begins with ATELIER_")
    return name, value


def factor(text: str) -> float:
    """A factor above zero."""
    value = float(text)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError("between 0 and 1000")
    return value


def run_one(arguments: argparse.Namespace) -> int:
    """Runs one scenario."""
    # Locust replaces the blocking parts of the standard library, so only what runs it may import it.
    from loadtest.conduct import run_scenario  # noqa: PLC0415

    return run_scenario(arguments.scenario, arguments)


def run_all(arguments: argparse.Namespace) -> int:
    """Runs the standard set, each scenario in a process of its own."""
    from loadtest.standard import run_standard_set  # noqa: PLC0415

    return run_standard_set(arguments)


def list_names(_: argparse.Namespace) -> int:
    """Names everything there is."""
    from loadtest.conduct import list_scenarios  # noqa: PLC0415

    print("scenarios")
    for name, summary in list_scenarios():
        print(f"  {name:18} {summary}")
    print("checkers")
    for name in CHECKERS:
        print(f"  {name}")
    print("sabotages, and who must catch them")
    for name, sabotage in SABOTAGES.items():
        print(f"  {name:22} {', '.join(sabotage.caught_by)} (best seen with {sabotage.shown_by})")
    return 0


def check_files(arguments: argparse.Namespace) -> int:
    """Checks recorded histories as one."""
    names = tuple(arguments.only or CHECKERS)
    path: Path | None = None
    with StoredHistory() as history:
        try:
            for path in arguments.files:
                load_file(history, path, arguments)
            verdicts = check_history(history, names)
        except MalformedHistoryError as error:
            verdicts = doubt_all(f"{path}: {error}", names)
    for verdict in verdicts:
        facts = f"{verdict.state.value:8} {verdict.guarantee:30} {verdict.looked_at:>9} looked at"
        print(f"{facts}  {verdict.witness}".rstrip())
    if arguments.sabotage:
        print(tell_whether_caught(arguments.sabotage, verdicts))
    return exit_status(conclude(verdicts))


def load_file(history: StoredHistory, path: Path, arguments: argparse.Namespace) -> None:
    """Takes a file in, or a broken copy of it."""
    with path.open(encoding="utf-8") as lines:
        if not arguments.sabotage:
            history.load(lines)
            return
        try:
            history.load(tamper_with(lines, arguments.sabotage, random.Random(1)))
        except NothingToBreakError:
            raise ValueError(f"{path} holds nothing that {arguments.sabotage} could break") from None


if __name__ == "__main__":
    sys.exit(main())
