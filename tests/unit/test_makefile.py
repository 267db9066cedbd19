"""What `make` would install, by which tool and when, and how it switches memory off; nothing is installed here."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.fixtures.reading import make_settings
from tests.fixtures.remembering import WITH_MEMORY
from tests.support import plain_environment

TOP = Path(__file__).resolve().parents[2]
LOCKS = ("requirements/dev.txt", "requirements/service.txt")
FROM_OUTSIDE = {"TEST_CACHE_BYTES", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "CACHE"}
INSTALLED = {"up": (".created", ".service"), "test": (".created", ".dev", ".service")}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what decides about the installation, an hour old, with an empty folder for programs beside it."""
    top = tmp_path / "checkout"
    (top / "requirements").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("Makefile", "pyproject.toml", *LOCKS):
        shutil.copy(TOP / name, top / name)
        age(top / name, minutes=60)
    return top


def age(path: Path, *, minutes: float) -> None:
    """Makes a file so old."""
    then_s = time.time() - 60 * minutes
    os.utime(path, (then_s, then_s))


def put_uv(checkout: Path) -> str:
    """Puts a `uv` onto the path; gives its name."""
    uv = checkout.parent / "bin" / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    return str(uv)


def install(checkout: Path, target: str) -> None:
    """Leaves behind what a finished `make up` or `make test` leaves, half an hour ago."""
    (checkout / ".venv").mkdir()
    for name in INSTALLED[target]:
        (checkout / ".venv" / name).touch()
        age(checkout / ".venv" / name, minutes=30)


def plan(checkout: Path, target: str) -> list[str]:
    """The installing commands that `make` would run; only the folder for programs is on its path."""
    make = shutil.which("make")
    assert make is not None
    told = subprocess.run(
        [make, "-n", target],
        cwd=checkout,
        env={"PATH": str(checkout.parent / "bin")},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    commands = told.replace("\\\n", " ").replace("&&", "\n").splitlines()
    return [" ".join(command.split()) for command in commands if " install " in command]


@pytest.mark.parametrize("has_uv", [False, True], ids=["pip", "uv"])
@pytest.mark.parametrize(("target", "lock"), [("up", "service"), ("test", "dev")])
def test_first_start_installs_by_hash_with_the_tool_that_is_there(
    checkout: Path, target: str, lock: str, *, has_uv: bool
) -> None:
    """The packages with a hash each, then the project itself with nothing that it could fetch."""
    tool = f"{put_uv(checkout)} pip install" if has_uv else ".venv/bin/pip --disable-pip-version-check install"
    packages, project = plan(checkout, target)
    assert packages.startswith(tool)
    assert packages.endswith(f"--require-hashes -r requirements/{lock}.txt")
    assert project.startswith(tool)
    assert project.endswith("--no-deps --no-build-isolation -e .")


@pytest.mark.parametrize(("done", "target"), [("up", "up"), ("test", "test"), ("test", "up")])
def test_what_is_installed_is_not_installed_again(checkout: Path, done: str, target: str) -> None:
    """The second `make up` starts at once, and so does one after `make test`."""
    install(checkout, done)
    assert plan(checkout, target) == []


@pytest.mark.parametrize(
    ("done", "target", "lock"),
    [("up", "up", "service"), ("test", "test", "dev"), ("test", "up", "dev"), ("up", "test", "dev")],
)
def test_new_locks_are_installed_by_whichever_is_made_next(checkout: Path, done: str, target: str, lock: str) -> None:
    """Nobody runs on yesterday's packages after a pull; what was installed for development stays that."""
    install(checkout, done)
    for name in LOCKS:
        age(checkout / name, minutes=10)
    packages, _ = plan(checkout, target)
    assert packages.endswith(f"--require-hashes -r requirements/{lock}.txt")


@pytest.mark.parametrize(
    ("target", "words", "cache_bytes", "lab_words"),
    [
        ("test", [], "none", ""),
        ("test", ["CACHE=on"], "none", ""),
        ("test", ["CACHE=off"], "0", ""),
        ("test-slow", ["CACHE=off"], "0", ""),
        ("soak", ["CACHE=off"], "0", ""),
        ("e2e", ["CACHE=off"], "0", ""),
        ("lab", ["CACHE=on"], "none", ""),
        ("lab", ["CACHE=off"], "none", "--setting=ATELIER_CACHE_BYTES=0"),
    ],
)
def test_memory_is_switched_off_for_a_whole_run(
    checkout: Path, target: str, words: list[str], cache_bytes: str, lab_words: str
) -> None:
    """The tests are told by the environment, the lab by its own words."""
    install(checkout, "test")
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "${TEST_CACHE_BYTES-none} $*"\n')
    python.chmod(0o755)
    # What a make around this one tells its children is not for this one.
    environ = {name: value for name, value in os.environ.items() if name not in FROM_OUTSIDE}
    told = subprocess.run(
        [shutil.which("make") or "", target, *words],
        cwd=checkout, env=environ, capture_output=True, text=True, timeout=30, check=True,
    ).stdout.strip()  # fmt: skip
    assert told.startswith(f"{cache_bytes} -m ")
    assert told.endswith(lab_words)
    assert ("--setting" in told) == bool(lab_words)


def test_switch_for_memory_has_two_positions(checkout: Path) -> None:
    """`CACHE=0` would pass for a run without memory and be none."""
    done = subprocess.run(
        [shutil.which("make") or "", "test", "CACHE=0"], cwd=checkout, capture_output=True, timeout=30, check=False
    )
    assert done.returncode
    assert b"CACHE is on or off" in done.stderr


def test_whatever_the_tests_start_honours_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command, a service, a reading side in the test's own process; where memory is the matter, it has one."""
    cluster = EmbeddedCluster.__new__(EmbeddedCluster)
    nodes = {
        "ATELIER_NODES": "pg1=127.0.0.1:1",
        "ATELIER_MIGRATOR_PASSWORD": "m",
        "ATELIER_TOKEN_KEYS": f"1:{'0' * 64}",
    }
    nodes |= {f"ATELIER_{role}_PASSWORD": "p" for role in ("READER", "WRITER", "MONITOR")}
    monkeypatch.setattr(EmbeddedCluster, "environment", lambda _: nodes)
    for value, kept in (("0", 0), ("4096", 4096)):
        monkeypatch.setenv("TEST_CACHE_BYTES", value)
        assert plain_environment()["ATELIER_CACHE_BYTES"] == value
        assert make_settings(cluster).reads.cache_bytes == kept
        assert make_settings(cluster, WITH_MEMORY).reads.cache_bytes == 64 * 1024 * 1024
    monkeypatch.delenv("TEST_CACHE_BYTES")
    assert "ATELIER_CACHE_BYTES" not in plain_environment()
