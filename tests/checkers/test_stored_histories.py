"""Histories on disk: verdicts as in memory, nothing malformed accepted, a million operations in a minute."""

import random
import resource
import subprocess
import sys

import pytest

from loadtest.checkers.registry import CHECKERS, check_history
from loadtest.history import store
from loadtest.history.record import MalformedHistoryError, read_op, write_op
from loadtest.history.store import MemoryHistory, StoredHistory
from loadtest.sabotage.tamper import TAMPERS
from tests.checkers.model import make_history
from tests.checkers.notation import ops

GOOD = (
    '{"n":1,"session":"a","op":"read","invoked_s":1.0,"completed_s":1.5,"outcome":"ok",'
    '"lines":[{"key":"sku:1","version":2}]}'
)

# The peak since the program began: what getrusage tells begins with the size of the parent.
MEASURED = """
import re, sys
from loadtest.__main__ import main
status = main(["check", sys.argv[1]])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture
def small_chunks(monkeypatch):
    """Makes even short histories spill and merge."""
    monkeypatch.setattr(store, "_CHUNK_ROWS", 50)
    monkeypatch.setattr(store, "_BLOCK_ROWS", 7)


@pytest.mark.parametrize("name", [None, *TAMPERS])
def test_stored_history_gives_the_same_verdicts_as_one_in_memory(name, small_chunks):
    """Spilling to disk and merging change nothing, whole or broken."""
    rng = random.Random(11)
    made = make_history(rng, 300)
    made = TAMPERS[name].apply(made, rng) if name else made
    with StoredHistory() as stored:
        stored.load(map(write_op, made))
        assert check_history(stored) == check_history(MemoryHistory(made))


def test_record_survives_being_written_and_read():
    """What a line of JSON says is what was recorded."""
    for op in [
        *make_history(random.Random(5), 200),
        *ops("ann reads x v2 =5/1 bounded:100 lag:7 on pg2; ann reserves x held:2 ? as k"),
    ]:
        assert read_op(write_op(op)) == op


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        GOOD.replace('"op":"read"', '"op":"dance"'),
        GOOD.replace('"outcome":"ok"', '"outcome":"fine"'),
        GOOD.replace('"n":1', '"n":"1"'),
        GOOD.replace('"n":1', '"n":2'),
        GOOD.replace('"invoked_s":1.0', '"invoked_s":"soon"'),
        GOOD.replace('"invoked_s":1.0', '"invoked_s":9.0'),
        GOOD.replace('"version":2', '"version":"2"'),
        GOOD.replace('"version":2', '"version":true'),
        GOOD.replace('"version":2', '"colour":2'),
        GOOD.replace('"session":"a",', ""),
        GOOD.replace('"key":"sku:1",', ""),
        GOOD.replace('"session":"a"', '"session":"a","surprise":1'),
    ],
)
def test_malformed_line_is_refused_and_named(line):
    """A history that cannot be read is told apart from one that is right: it says which line."""
    with StoredHistory() as stored, pytest.raises(MalformedHistoryError, match="line 1"):
        stored.load([line])


def test_missing_line_is_noticed():
    """A history that lost a line in the middle is malformed."""
    lines = list(map(write_op, make_history(random.Random(5), 20)))
    with StoredHistory() as stored, pytest.raises(MalformedHistoryError, match="line 9: its number is 10"):
        stored.load(lines[:8] + lines[9:])


def test_histories_of_several_processes_are_checked_as_one():
    """Each process writes a file of its own; sessions and versions meet in the checkers."""
    with StoredHistory() as stored:
        stored.load(map(write_op, ops("ann adjusts x -1 v2 @1-2")))
        stored.load(map(write_op, ops("bob reads x v1 strong @3-4")))
        verdict = CHECKERS["linearizability"](stored)
    assert (verdict.state, verdict.ops) == ("invalid", (1, 2))


def test_command_line_ends_with_the_verdict(tmp_path):
    """`check` ends with 0, 1 or 2, for valid, invalid and unknown, and with one line for a file that is not there."""
    rng = random.Random(4)
    made = make_history(rng, 400)
    broken = TAMPERS["apply-twice"].apply(made, rng)
    for name, history, status in (("good", made, 0), ("bad", broken, 1), ("thin", made[:4], 2)):
        path = tmp_path / name
        path.write_text("".join(write_op(op) + "\n" for op in history))
        done = run_check(path)
        assert done.returncode == status, done.stdout + done.stderr
    (tmp_path / "garbled").write_text("{}\n")
    assert run_check(tmp_path / "garbled").returncode == 2
    missing = run_check(tmp_path / "missing")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1), missing.stderr


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.timeout(600)
def test_a_million_operations_are_checked_within_a_minute_and_flat_memory(tmp_path):
    """Time grows with the length, memory does not."""
    path = tmp_path / "long.jsonl"
    made = make_history(random.Random(3), 500_000)
    assert len(made) >= 1_000_000
    with path.open("w") as file:
        file.writelines(write_op(op) + "\n" for op in made)
    del made
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=False, timeout=400
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout
    # Of processor time, which other work on the machine does not lengthen.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    assert int(done.stderr) < 150 * 1024


def run_check(path):
    """Runs the checkers in a process of their own."""
    command = [sys.executable, "-m", "loadtest", "check", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
