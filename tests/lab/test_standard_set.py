"""The standard set runs each scenario as a process of its own, and lets it end what it has started."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# A run as far as it matters here: it begins something, and takes a while to end it when it is interrupted.
RUN = """
import sys, time
from pathlib import Path
print("begun", file=sys.stderr, flush=True)
try:
    time.sleep(60)
finally:
    time.sleep(1)
    Path(sys.argv[1]).write_text("ended")
"""
SET = """
import sys
from loadtest.standard import run_to_its_end
run_to_its_end([sys.executable, "-c", sys.argv[1], sys.argv[2]], limit_s=float(sys.argv[3]))
"""


def start_set(ended: Path, *, limit_s: float) -> "subprocess.Popen[str]":
    """A set of one run, which has begun."""
    command = [sys.executable, "-c", SET, RUN, str(ended), str(limit_s)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    return process


@pytest.mark.parametrize("limit_s", [60.0, 5.0])
def test_interrupted_or_overlong_run_ends_what_it_began(tmp_path: Path, limit_s: float) -> None:
    """Else its services would stay behind, in sessions of their own."""
    ended = tmp_path / "ended"
    process = start_set(ended, limit_s=limit_s)
    if limit_s == 60.0:
        process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert ended.read_text() == "ended"
    assert process.returncode != 0
    assert ("KeyboardInterrupt" if limit_s == 60.0 else "TimeoutExpired") in told
