"""Making, starting and stopping an embedded cluster, after every kind of rude end."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from atelier.embedded import process
from atelier.embedded.cluster import EmbeddedCluster
from atelier.embedded.errors import BusyError, EmbeddedError
from atelier.embedded.lock import hold_lock
from atelier.embedded.ports import FIRST, SPREAD, find_free
from tests.conftest import ClusterFactory
from tests.support import FAST, open_folder, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place for a data folder; whatever runs in it is stopped at the end."""
    with open_folder() as path:
        try:
            yield path / "data"
        finally:
            stop_servers_below(path)


def stop_servers_below(path: Path) -> None:
    """Kills what a test that failed half-way has left at work in its folder."""
    for home in path.glob("data/nodes/pg*"):
        process.end_leftovers(home, timeout_s=10)
    wait_until(lambda: not servers_below(path))


def servers_below(path: Path) -> list[psutil.Process]:
    """The servers that work in a folder below."""
    return [found for found in psutil.process_iter() if _works_below(found, path)]


def _works_below(found: psutil.Process, path: Path) -> bool:
    try:
        return process.is_alive(found) and Path(found.cwd()).is_relative_to(path)
    except psutil.Error:
        return False


def open_fast(folder: Path, replicas: int | None = None, lines: list[str] | None = None) -> EmbeddedCluster:
    """A cluster without fsync; what it says is kept in `lines`."""
    say = (lambda _: None) if lines is None else lines.append
    return EmbeddedCluster.create_or_open(folder, replicas, extra_settings=FAST, say=say)


def streaming(cluster: EmbeddedCluster) -> set[str]:
    """The names of the replicas that stream from the primary."""
    return set(cluster.primary.sql("select application_name from pg_stat_replication").split())


def write_row(cluster: EmbeddedCluster) -> str:
    """Commits something random on the primary, in the database that every cluster has."""
    word = secrets.token_hex(8)
    cluster.primary.sql(
        f"create table if not exists public.word (word text); insert into public.word values ('{word}')"
    )
    return word


def has_row(cluster: EmbeddedCluster, name: str, word: str) -> bool:
    """Whether a node shows it."""
    try:
        return cluster.node(name).sql(f"select 1 from public.word where word = '{word}'") == "1"
    except EmbeddedError:
        return False


def test_new_cluster_streams_over_a_slot_for_each_replica(cluster: EmbeddedCluster) -> None:
    """One primary, two replicas, each with its own slot and its name."""
    assert streaming(cluster) == {"pg2", "pg3"}
    slots = "select slot_name, active, wal_status from pg_replication_slots order by 1"
    assert cluster.primary.sql(slots).splitlines() == ["pg2|t|reserved", "pg3|t|reserved"]


def test_every_node_has_the_shared_configuration(cluster: EmbeddedCluster) -> None:
    """Any may become the primary, so they are alike but for their identity."""
    for name, node in cluster.nodes.items():
        wanted = {
            "cluster_name": name,
            "wal_level": "replica",
            "synchronous_commit": "on",
            "hot_standby_feedback": "off",
            "jit": "off",
            "data_checksums": "on",
        }
        assert {key: node.sql(f"show {key}") for key in wanted} == wanted
        assert node.sql("show max_slot_wal_keep_size") != "-1"
        assert node.sql("select count(*) from pg_file_settings where error is not null") == "0"


def test_database_is_utf8_whatever_the_locale(cluster: EmbeddedCluster) -> None:
    """Without LANG initdb would choose SQL_ASCII."""
    found = cluster.primary.sql(
        "select pg_encoding_to_char(encoding), datlocprovider, datlocale from pg_database where datname = 'atelier'"
    )
    assert found == "UTF8|b|C.UTF-8"


def test_servers_listen_on_loopback_alone(cluster: EmbeddedCluster) -> None:
    """And on no socket file, which would lie in a folder that all users share."""
    for node in cluster.nodes.values():
        found = node.running()
        assert found is not None
        listening = [c.laddr for c in found.process.net_connections("all") if c.status == psutil.CONN_LISTEN]
        assert {address.ip for address in listening} == {"127.0.0.1"}
        assert node.sql("show unix_socket_directories") == ""


def test_no_secret_is_on_a_command_line_or_open_to_others(cluster: EmbeddedCluster) -> None:
    """Command lines are open to every process of the machine."""
    known = list(cluster._server.secrets.passwords.values())
    for node in cluster.nodes.values():
        found = node.running()
        assert found is not None
        for one in [found.process, *found.process.children()]:
            assert not any(secret in " ".join(one.cmdline()) for secret in known)
    for path in cluster.folder.path.rglob("*"):
        if path.is_file() and path.suffix in {".json", ".pgpass", ".conf"}:
            assert path.stat().st_mode & 0o077 == 0, path


def test_data_and_ports_stay_over_a_stop(folder: Path) -> None:
    """The second start makes nothing anew: the same data, ports and passwords, and no clone."""
    cluster = open_fast(folder, 1)
    cluster.start()
    word, before = write_row(cluster), cluster.environment()
    cluster.stop()
    assert cluster.running() == []
    lines: list[str] = []
    again = open_fast(folder, lines=lines)
    again.start()
    assert again.environment() == before
    assert not any("copying" in line for line in lines)
    wait_until(lambda: has_row(again, "pg2", word))


def test_start_of_a_running_cluster_changes_nothing(folder: Path) -> None:
    """Servers that run are left alone."""
    cluster = open_fast(folder, 1)
    cluster.start()
    before = {name: node.running() for name, node in cluster.nodes.items()}
    open_fast(folder).start()
    assert {name: node.running() for name, node in cluster.nodes.items()} == before


def test_replicas_can_be_added_later(folder: Path) -> None:
    """More are cloned; fewer than there are takes none away."""
    open_fast(folder, 0).start()
    cluster = open_fast(folder, 2)
    cluster.start()
    assert streaming(cluster) == {"pg2", "pg3"}
    lines: list[str] = []
    assert list(open_fast(folder, 1, lines).nodes) == ["pg1", "pg2", "pg3"]
    assert lines == ["the cluster has 2 replicas already, and keeps them"]
    lines.clear()
    open_fast(folder, None, lines)
    open_fast(folder, 2, lines)
    assert lines == []


def test_servers_outlive_the_process_that_started_them(folder: Path) -> None:
    """And no Ctrl-C of its terminal reaches them: they are in sessions of their own."""
    script = (
        "import sys; from pathlib import Path; from atelier.embedded.cluster import EmbeddedCluster as C;"
        "c = C.create_or_open(Path(sys.argv[1]), 1, extra_settings={'fsync': 'off'}); c.start()"
    )
    subprocess.run([sys.executable, "-c", script, folder], check=True, timeout=60)
    cluster = EmbeddedCluster.open(folder)
    assert cluster.running() == ["pg1", "pg2"]
    for node in cluster.nodes.values():
        found = node.running()
        assert found is not None
        assert os.getsid(found.process.pid) == found.process.pid
    cluster.stop()
    assert servers_below(folder) == []


@pytest.mark.parametrize("name", ["pg1", "pg2"])
@pytest.mark.soak
def test_killed_postmaster_comes_back(folder: Path, name: str) -> None:
    """Kill -9, its pid file left behind, its process perhaps not reaped: the next start copes."""
    cluster = open_fast(folder, 1)
    cluster.start()
    word = write_row(cluster)
    cluster.kill(name)
    assert name not in cluster.running()
    cluster.start()
    assert cluster.running() == ["pg1", "pg2"]
    wait_until(lambda: has_row(cluster, "pg2", word))
    assert streaming(cluster) == {"pg2"}


@pytest.mark.soak
def test_all_killed_at_once_come_back(folder: Path) -> None:
    """As after the machine lost its power, but for the disk's own cache."""
    cluster = open_fast(folder, 1)
    cluster.start()
    word = write_row(cluster)
    for name in cluster.nodes:
        cluster.kill(name)
    cluster.start()
    wait_until(lambda: has_row(cluster, "pg2", word))


def test_pid_file_that_names_a_stranger_is_tidied(folder: Path) -> None:
    """After a reboot the pid may belong to anybody; PostgreSQL itself would refuse to start for ever."""
    cluster = open_fast(folder, 0)
    cluster.start()
    cluster.kill("pg1")
    path = cluster.primary.data / "postmaster.pid"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    cluster.start()
    assert cluster.running() == ["pg1"]


@pytest.mark.soak
def test_frozen_node_can_be_killed_and_started(folder: Path) -> None:
    """Its frozen children would hold the shared memory for ever."""
    cluster = open_fast(folder, 1)
    cluster.start()
    cluster.freeze("pg2")
    cluster.kill("pg2")
    cluster.start()
    wait_until(lambda: streaming(cluster) == {"pg2"})


@pytest.mark.soak
def test_freeze_and_thaw(folder: Path) -> None:
    """A frozen node answers nobody, and goes on where it was."""
    cluster = open_fast(folder, 1)
    cluster.start()
    cluster.freeze("pg2")
    found = cluster.node("pg2").running()
    assert found is not None
    assert found.is_frozen()
    assert all(child.status() == psutil.STATUS_STOPPED for child in found.process.children())
    word = write_row(cluster)
    cluster.thaw("pg2")
    wait_until(lambda: has_row(cluster, "pg2", word))


def test_paused_replay_receives_and_does_not_show(folder: Path) -> None:
    """Received is not visible; resumed, it is."""
    cluster = open_fast(folder, 1)
    cluster.start()
    write_row(cluster)
    cluster.pause_replay("pg2")
    word = write_row(cluster)
    end = cluster.primary.sql("select pg_current_wal_flush_lsn()")
    wait_until(lambda: cluster.node("pg2").sql(f"select pg_last_wal_receive_lsn() >= '{end}'") == "t")
    assert not has_row(cluster, "pg2", word)
    cluster.resume_replay("pg2")
    wait_until(lambda: has_row(cluster, "pg2", word))


def test_port_taken_by_a_stranger_is_left_to_him_and_the_replicas_follow(folder: Path) -> None:
    """Both ports are taken while the cluster is down; nobody is cloned for it."""
    cluster = open_fast(folder, 1)
    cluster.start()
    before = {name: node.port for name, node in cluster.nodes.items()}
    cluster.stop()
    lines: list[str] = []
    with socket.socket() as one, socket.socket() as other:
        for stranger, port in zip((one, other), before.values(), strict=True):
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stranger.bind(("127.0.0.1", port))
            stranger.listen()
        again = open_fast(folder, lines=lines)
        again.start()
    assert all(again.node(name).port != port for name, port in before.items())
    assert sum("is taken" in line for line in lines) == 2
    assert not any("copying" in line for line in lines)
    assert streaming(again) == {"pg2"}


def test_port_is_remembered_by_those_who_open_the_folder(folder: Path) -> None:
    """The environment of the service names the ports that the servers have."""
    cluster = open_fast(folder, 1)
    cluster.start()
    nodes = ",".join(f"{name}=127.0.0.1:{node.sql('show port')}" for name, node in cluster.nodes.items())
    assert EmbeddedCluster.open(folder).environment()["ATELIER_NODES"] == nodes


MORE_MOMENTS_S = [0.05, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9, 1.2, 1.4, 1.6]


@pytest.mark.parametrize(
    "after_s", [0.2, 1.0, *(pytest.param(after_s, marks=pytest.mark.slow) for after_s in MORE_MOMENTS_S)]
)
def test_start_that_was_killed_at_any_moment_is_completed(folder: Path, after_s: float) -> None:
    """SIGKILL for the command and whatever program it was just running, at moments all over a first start."""
    script = (
        "import sys; from pathlib import Path; from atelier.embedded.cluster import EmbeddedCluster as C;"
        "C.create_or_open(Path(sys.argv[1]), 1, extra_settings={'fsync': 'off'}).start()"
    )
    operator = subprocess.Popen([sys.executable, "-c", script, folder])
    wait_until(lambda: folder.exists() or operator.poll() is not None)
    deadline_s = time.monotonic() + after_s
    wait_until(lambda: time.monotonic() >= deadline_s or operator.poll() is not None)
    operator.kill()
    operator.wait()
    cluster = open_fast(folder, 1)
    cluster.start()
    word = write_row(cluster)
    wait_until(lambda: has_row(cluster, "pg2", word))
    assert streaming(cluster) == {"pg2"}
    leftovers = [path for node in cluster.nodes.values() for path in node.home.glob("data.*")]
    assert leftovers == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_start_that_was_killed_while_it_wrote_a_file_is_completed(folder: Path, number: int) -> None:
    """SIGKILL before the first, second or third small file has its name: secrets.json, cluster.json, nodes.list."""
    script = (
        "import os, sys, signal, itertools; from pathlib import Path;"
        "from atelier.embedded.cluster import EmbeddedCluster as C; number = itertools.count(1);"
        "os.fsync = lambda _: next(number) < int(sys.argv[2]) or os.kill(os.getpid(), signal.SIGKILL);"
        "C.create_or_open(Path(sys.argv[1]), 0)"
    )
    killed = subprocess.run([sys.executable, "-c", script, folder, str(number)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert list(folder.glob(".*")) != []
    open_fast(folder, 0).start()
    assert EmbeddedCluster.open(folder).running() == ["pg1"]
    assert list(folder.glob(".*")) == []


def test_half_made_replica_is_made_anew(folder: Path) -> None:
    """Its folder holds a part of a copy; a clone that still runs is ended."""
    cluster = open_fast(folder, 1)
    cluster.start()
    cluster.stop()
    home = cluster.node("pg2").home
    shutil.move(home / "data", home / "data.12345")
    (home / "data.12345" / "PG_VERSION").unlink()
    cluster.start()
    assert streaming(cluster) == {"pg2"}
    assert list(home.glob("data.*")) == []


def test_replica_torn_by_an_interrupted_rewind_is_cloned(folder: Path) -> None:
    """It is neither what it was nor what it should become; it is said aloud."""
    cluster = open_fast(folder, 1)
    cluster.start()
    cluster.stop()
    cluster.node("pg2").torn_mark.touch()
    lines: list[str] = []
    again = open_fast(folder, lines=lines)
    again.start()
    assert "pg2: copying all of pg1" in lines
    assert not again.node("pg2").torn_mark.exists()
    assert streaming(again) == {"pg2"}


def test_folder_of_a_complete_cluster_is_never_made_anew(folder: Path) -> None:
    """Its cluster.json is gone: better refused than removed."""
    cluster = open_fast(folder, 0)
    cluster.start()
    cluster.stop()
    (folder / "cluster.json").unlink()
    with pytest.raises(EmbeddedError, match=r"holds the data of a cluster, and no cluster\.json"):
        open_fast(folder, 0)
    assert (cluster.primary.data / "PG_VERSION").exists()


def test_folder_of_another_major_is_refused_in_one_line(folder: Path) -> None:
    """PostgreSQL could not read it; nothing is touched."""
    cluster = open_fast(folder, 0)
    cluster.start()
    cluster.stop()
    (cluster.primary.data / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 17, and this is 18: .* ATELIER_PG_BIN") as caught:
        open_fast(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"eighteen\n", b"\xff\xfe"])
def test_garbled_version_is_one_line_that_names_the_file(folder: Path, content: bytes) -> None:
    """Nothing is touched."""
    cluster = open_fast(folder, 0)
    cluster.primary.data.mkdir(parents=True)
    (cluster.primary.data / "PG_VERSION").write_bytes(content)
    with pytest.raises(EmbeddedError, match=r"pg1/data/PG_VERSION is damaged") as caught:
        open_fast(folder)
    assert "\n" not in str(caught.value)


def test_server_that_refuses_to_start_says_why_in_one_line(folder: Path) -> None:
    """The reason from its log, not that there is one."""
    with pytest.raises(EmbeddedError, match=r"pg1 does not start: .*shared_buffers") as caught:
        EmbeddedCluster.create_or_open(folder, 0, extra_settings={"shared_buffers": "'lots'"}).start()
    assert "\n" not in str(caught.value)


def test_two_operators_do_not_work_at_the_same_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is told who the first is."""
    cluster = open_fast(folder, 0)
    monkeypatch.setattr("atelier.embedded.cluster._LOCK_S", 0.05)
    with hold_lock(cluster.folder.lock, timeout_s=0), pytest.raises(BusyError):
        cluster.start()


def test_secrets_are_made_by_one_operator_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second first start would replace those that the cluster is just being made with."""
    monkeypatch.setattr("atelier.embedded.opening._LOCK_S", 0.05)
    folder.mkdir()
    with hold_lock(folder / "lock", timeout_s=0), pytest.raises(BusyError):
        open_fast(folder, 0)
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_unknown_node_is_refused_by_name(cluster: EmbeddedCluster) -> None:
    """And told which there are."""
    with pytest.raises(EmbeddedError, match="there is no node 'pg9'; there are pg1, pg2, pg3"):
        cluster.node("pg9")


def test_stop_does_not_wait_for_clients(make_cluster: ClusterFactory) -> None:
    """A session in the middle of a transaction is ended, not waited for."""
    cluster = make_cluster(replicas=0)
    sleeping = subprocess.Popen(
        [cluster._server.binaries.path("psql"), "-Xqc", "select pg_sleep(60)", cluster.superuser_dsn("pg1")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    busy = "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)'"
    wait_until(lambda: cluster.primary.sql(busy) == "1")
    cluster.stop()
    assert sleeping.wait(timeout=5) != 0
    assert cluster.primary.control_data().state == "shut down"


def test_stale_signal_to_a_recycled_pid_is_never_sent(folder: Path) -> None:
    """A pid file that names this test's own child must not get it killed."""
    cluster = open_fast(folder, 0)
    cluster.start()
    cluster.stop()
    with subprocess.Popen(["sleep", "60"]) as bystander:
        (cluster.primary.data / "postmaster.pid").write_text(f"{bystander.pid}\n{cluster.primary.data}\n0\n\n\n\n\n")
        cluster.stop()
        with pytest.raises(EmbeddedError, match="pg1 is not running"):
            cluster.kill("pg1")
        assert bystander.poll() is None
        bystander.send_signal(signal.SIGTERM)


def test_port_that_others_snatch_again_and_again_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look said free, and the server finds it taken: it goes elsewhere, for the primary and for a replica."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        snatched = stranger.getsockname()[1]

        def find_snatched(taken: set[int], *, first: int) -> int:
            return snatched if first == FIRST else find_free(taken, first=first)

        monkeypatch.setattr("atelier.embedded.cluster.find_free", find_snatched)
        lines: list[str] = []
        cluster = open_fast(folder, 1, lines)
        cluster.start()
    assert streaming(cluster) == {"pg2"}
    assert all(node.port in SPREAD for node in cluster.nodes.values())
    assert sum(f"port {snatched} is taken" in line for line in lines) == 2
