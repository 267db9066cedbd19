"""The compose files themselves."""

import subprocess

import pytest

from tests.e2e.stack import HA, PLAIN, ROOT


@pytest.mark.parametrize("profile", ["", "faults", "load", "*"])
@pytest.mark.parametrize("file", [PLAIN, HA])
def test_the_file_is_clean(file: str, profile: str) -> None:
    """Nothing is said about it, not even a warning."""
    command = ["docker", "compose", "-f", file, "--profile", profile, "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
