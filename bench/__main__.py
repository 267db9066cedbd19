"""`python -m bench [SUBJECT...]`: measures subjects one after the other, and says who met its target."""

import argparse
import importlib
import signal
import sys
import time
from pathlib import Path

from bench.report import write_report
from bench.stand import BenchError, describe_machine, open_stand
from bench.table import Row, print_row, read_rows
from bench.targets import judge

SUBJECTS = {
    "ways": "The same reads in many ways",
    "reads": "Reads against the same SQL by pgbench",
    "commands": "Commands, 64 clients",
    "mixed": "Reads while commands run, one process for both",
    "growth": "What the size of the catalogue costs",
    "costs": "Processor time of one request, by who spends it",
    "headline": "8,000 reads a second through the proxy while 500 commands a second run",
    "import": "An import against plain copying of the same rows",
}
MODULES = {"import": "import_catalogue"}


def main() -> int:
    """Runs the subjects; 0 when all targets are met, 1 when one is missed, 2 when it cannot measure."""
    parser = argparse.ArgumentParser(prog="bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; all unless named")
    parser.add_argument("--products", type=int, default=1_000_011, help="size of the catalogue (1,000,011)")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement (5)")
    parser.add_argument("--rounds", type=int, default=3, help="in which everything that is compared takes its turn (3)")
    parser.add_argument("--keep", type=Path, help="folder where the cluster stays for another time")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the tables and pictures there")
    parser.add_argument("--profile", action="store_true", help="look into the reading process at the end of headline")
    options = parser.parse_args()
    unknown = set(options.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"there is no {min(unknown)!r}; there are {', '.join(SUBJECTS)}")
    # Told to end it takes its servers with it, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Measures, prints, and writes the results down."""
    results: dict[str, list[Row]] = {}
    with open_stand(
        options.products, keep=options.keep, seconds=options.seconds, rounds=options.rounds, profiles=options.profile
    ) as stand:
        machine = describe_machine(stand)
        print(machine)
        for name in options.subjects or SUBJECTS:
            began_s = time.monotonic()
            print(f"\n{SUBJECTS[name]}", flush=True)
            for row in importlib.import_module(f"bench.{MODULES.get(name, name)}").measure(stand):
                results.setdefault(name, []).append(row)
                print_row(row)
            print(f"  ({time.monotonic() - began_s:.0f} s)")
            if options.write:
                # At once: a run is long, and whoever interrupts it keeps what it has measured.
                write_report(options.write, machine, {name: results[name]})
    targets = judge(results)
    print("\nEvery target of the design", flush=True)
    for row in targets:
        if row.target:
            print_row(row)
    if options.write:
        before = read_rows(options.write.read_text(encoding="utf-8"), "targets")
        write_report(options.write, machine, {"targets": judge(results, before)})
    missed = [row.name for rows in results.values() for row in rows if not row.is_met]
    print(f"\n{len(missed)} targets missed{': ' if missed else ''}{'; '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
