"""The tests' own rules: one that fails tells so, and holds up no other."""

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]

LEAKING = """
import asyncio
import pytest

@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio", {"use_uvloop": True}

@pytest.mark.anyio
async def test_leaves_a_connection_open():
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert not reader, "as it should be"
"""


def test_test_that_fails_with_a_connection_open_fails_and_does_not_hang(tmp_path: Path) -> None:
    """By the project's own rules for warnings: as an error one of them would stop the loop in the middle of closing."""
    leaking = tmp_path / "test_leaking.py"
    leaking.write_text(LEAKING)
    command = [sys.executable, "-m", "pytest", "-c", PROJECT / "pyproject.toml", "-p", "no:cacheprovider", leaking]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 1, told.stderr
    assert "AssertionError: as it should be" in told.stdout, told.stderr
    assert "1 failed" in told.stdout
