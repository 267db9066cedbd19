"""A service that was stopped is waited for, and not for ever."""

import subprocess
import sys

import pytest

from atelier.cli import launch


def test_child_that_has_ended_is_reaped() -> None:
    """Its code is known afterwards, and no zombie is left."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    launch.reap(child)
    assert child.returncode == 0


def test_child_that_does_not_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs in the kernel survives its kill: `up` ends all the same."""
    monkeypatch.setattr(launch, "_REAP_S", 0.05)
    with subprocess.Popen(["sleep", "60"]) as child:
        launch.reap(child)
        assert child.poll() is None
        child.kill()
