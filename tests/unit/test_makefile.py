"""What `make` would install, by which tool and when; nothing is installed here."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
LOCKS = ("requirements/dev.txt", "requirements/service.txt")
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
