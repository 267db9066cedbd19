"""The project as something to install: what the wheel carries, what the lock files may say."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from atelier.resources import ResourceMissingError, resource_dir
from tools import stale

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all files in a wheel that was just built."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=TOP, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("folder", ["migrations", "replication"])
def test_wheel_carries_every_file_of(folder: str, wheel_names: set[str]) -> None:
    """An installed wheel migrates and configures servers with no checkout beside it."""
    here = {path.relative_to(TOP).as_posix() for path in (TOP / folder).rglob("*") if path.is_file()}
    wanted = {f"atelier/bundled/{name}" for name in here if "__pycache__" not in name}
    assert wanted
    assert wanted <= wheel_names


def test_wheel_carries_the_demo_catalogue_and_the_statements(wheel_names: set[str]) -> None:
    """Data files of the package are no Python, and easily forgotten."""
    assert {"atelier/loading/demo/product.csv", "atelier/reads/queries/product.sql"} <= wheel_names


def test_resources_are_found_in_a_checkout() -> None:
    """An editable installation reads the folders at the top of the repository."""
    assert (resource_dir("migrations") / "env.py").is_file()
    assert (resource_dir("replication") / "roles.sql").is_file()


def test_missing_resource_is_one_clear_line() -> None:
    """A damaged installation is said to be one."""
    with pytest.raises(ResourceMissingError, match="'nowhere'"):
        resource_dir("nowhere")


def test_lock_files_are_made_from_the_present_dependencies() -> None:
    """Nobody changes a dependency and forgets to lock it."""
    assert stale.find_faults() == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("--index-url elsewhere", "carries an address"),
        ("left-pad @ https://example.com/left-pad.whl", "carries an address"),
        ("left-pad==1.0", "not pinned by a hash"),
    ],
)
def test_lock_file_with_a_fault_is_refused(
    line: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail."""
    for name in (*stale.LOCKS, "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((TOP / name).read_bytes())
    monkeypatch.setattr(stale, "TOP", tmp_path)
    assert stale.find_faults() == []
    with (tmp_path / stale.LOCKS[0]).open("a") as lock:
        lock.write(f"{line}\n")
    assert any(fault in found for found in stale.find_faults())


def test_changed_dependency_makes_the_lock_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest follows the dependency tables."""
    for name in stale.LOCKS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((TOP / name).read_bytes())
    text = (TOP / "pyproject.toml").read_text().replace('"click>=', '"click >=')
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(stale, "TOP", tmp_path)
    assert all("is stale" in found for found in stale.find_faults())
    assert stale.find_faults()
