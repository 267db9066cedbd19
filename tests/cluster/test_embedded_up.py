"""`atelier up` and `atelier down` as a newcomer uses them: real processes, real signals."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from atelier.cli.service import read_record
from atelier.embedded import process
from atelier.embedded.cluster import EmbeddedCluster
from atelier.embedded.layout import DataFolder
from tests.support import FAST, find_free_port, open_folder, wait_until

pytestmark = pytest.mark.cluster

COMMAND = [sys.executable, "-P", "-m", "atelier.cli.main"]


class Shell:
    """Runs commands on one data folder, and stops what is left at the end."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.port = find_free_port()
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("ATELIER_")}
        self.environ["ATELIER_DATA_DIR"] = str(data_dir)
        self.started: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """Runs a command to its end."""
        done = subprocess.run(
            [*COMMAND, *arguments], env=self.environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts a command as a terminal would: the leader of a process group that Ctrl-C goes to."""
        child = subprocess.Popen(
            [*COMMAND, *arguments],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(child)
        return child

    def up(self, *arguments: str) -> dict[str, Any]:
        """Brings everything up, detached, and returns what it printed."""
        made = json.loads(self.run("up", "--detach", "--json", "--port=0", *arguments).stdout)
        assert isinstance(made, dict)
        return made

    def await_ready(self, child: "subprocess.Popen[str]") -> str:
        """Waits for the service of a foreground `up`."""
        wait_until(lambda: child.poll() is not None or self._url() is not None, timeout_s=60, what="the service")
        url = self._url()
        assert url is not None, child.communicate()
        return url

    def _url(self) -> str | None:
        record = read_record(DataFolder(self.data_dir))
        try:
            ready = record is not None and httpx.get(f"{record.url}/health/ready").is_success
        except httpx.TransportError:
            return None
        return record.url if record and ready else None

    def is_all_stopped(self) -> bool:
        """Whether neither a server nor a process of the service is left."""
        record = read_record(DataFolder(self.data_dir))
        return record is None and EmbeddedCluster.open(self.data_dir).running() == []


@pytest.fixture
def shell() -> Iterator[Shell]:
    """A data folder for a cluster of a primary and one replica that does not flush."""
    with open_folder() as folder:
        shell = Shell(folder / "data")
        EmbeddedCluster.create_or_open(shell.data_dir, 1, extra_settings=FAST)
        try:
            yield shell
        finally:
            for child in shell.started:
                # With all that it has started: a worker would hold the pipes open.
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.communicate(timeout=30)
            shell.run("down")
            for home in (shell.data_dir / "nodes").glob("pg*"):
                process.end_leftovers(home, timeout_s=10)


def test_up_prints_one_object_and_serves_from_a_replica(shell: Shell) -> None:
    """`--json`: url, api_key and nodes, nothing else; and everything that they promise is so."""
    made = shell.up()
    assert set(made) == {"url", "api_key", "nodes"}
    assert [(node["name"], node["role"]) for node in made["nodes"]] == [("pg1", "primary"), ("pg2", "replica")]
    products = httpx.get(f"{made['url']}/products")
    assert [product["name"] for product in products.json()][:1] == ["Camo Onesie"]
    assert products.headers["Atelier-Served-By"] == "pg2"
    key_file = shell.data_dir / "api-key"
    assert key_file.read_text().strip() == made["api_key"]
    assert key_file.stat().st_mode & 0o777 == 0o600
    headers = {"Authorization": f"Bearer {made['api_key']}"}
    assert httpx.get(f"{made['url']}/inventory/1", headers=headers).status_code == 200


def test_second_up_says_where_it_runs(shell: Shell) -> None:
    """The same object again when detached, one line and a non-zero exit in the foreground."""
    made = shell.up()
    again = shell.up()
    assert (again["url"], again["api_key"]) == (made["url"], made["api_key"])
    assert [node["name"] for node in again["nodes"]] == ["pg1", "pg2"]
    assert shell.run("up", code=1).stderr == f"atelier: already running at {made['url']}\n"


def test_every_up_shows_where_it_is_and_with_which_key(shell: Shell) -> None:
    """The first one, one that finds the service running, and the next start: addresses, the key, its path, examples."""
    shown = []
    for told in ("making an API key", "already running at", "starting the service at"):
        output = shell.run("up", "--detach", f"--port={shell.port}").stdout
        assert told in output
        shown.append(output[output.index("  API ") :])
        if told == "already running at":
            shell.run("down")
    url, path = f"http://127.0.0.1:{shell.port}", shell.data_dir / "api-key"
    key = path.read_text().strip()
    for text in shown:
        lines = text.splitlines()
        assert lines[:3] == [f"  API      {url}", f"  docs     {url}/docs", f"  cluster  {url}/cluster"]
        assert lines[3].startswith(f"  key      {key} ")
        assert str(path) in lines[3]
        assert [line.count("curl ") for line in lines[lines.index("Try:") + 1 :]] == [1, 1, 1]
    assert httpx.get(f"{url}/docs").status_code == 200
    assert httpx.get(f"{url}/cluster").status_code == 200


def test_up_that_finds_the_key_gone_is_one_line(shell: Shell) -> None:
    """The service goes on; the line says how to get another key."""
    url = shell.up()["url"]
    (shell.data_dir / "api-key").unlink()
    for arguments in (["--json"], []):
        said = shell.run("up", "--detach", *arguments, code=1).stderr
        assert said.startswith(f"atelier: already running at {url}, but {shell.data_dir / 'api-key'} is gone; ")
        assert said.endswith("after `atelier down` the next start makes a new key\n")
        assert len(said.splitlines()) == 1
    shell.run("down")
    assert shell.up()["api_key"].startswith("atl_")


@pytest.mark.timing
def test_down_stops_everything_and_the_next_up_finds_all_again(shell: Shell) -> None:
    """The same key, the same data, no second demo catalogue; and sooner, since nothing is made or copied again."""
    began_s = time.monotonic()
    made = shell.up()
    first_s = time.monotonic() - began_s
    shell.run("down")
    assert shell.is_all_stopped()
    assert shell.run("down").stderr == "nothing was running\n"
    began_s = time.monotonic()
    again = shell.up()
    second_s = time.monotonic() - began_s
    assert again["api_key"] == made["api_key"]
    assert len(httpx.get(f"{again['url']}/products", params={"count": 1000}).json()) == 36
    assert second_s < 0.9 * first_s


def test_empty_loads_no_catalogue(shell: Shell) -> None:
    """For those who bring their own."""
    assert httpx.get(f"{shell.up('--empty')['url']}/products").json() == []


def test_ctrl_c_stops_everything_cleanly(shell: Shell) -> None:
    """Twice in a row, as impatient people do; to the whole group, as a terminal does."""
    child = shell.start("up", "--port=0")
    url = shell.await_ready(child)
    wait_until(lambda: "Ctrl-C" in (line := child.stdout.readline()) or not line, timeout_s=30)
    os.killpg(child.pid, signal.SIGINT)
    os.killpg(child.pid, signal.SIGINT)
    output, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert "Traceback" not in errors
    assert output.endswith("stopped\n")
    assert shell.is_all_stopped()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    assert EmbeddedCluster.open(shell.data_dir).primary.control_data().state == "shut down"


def test_output_tells_each_step_and_what_to_try(shell: Shell) -> None:
    """The lines that a newcomer sees, and the commands in them work as they stand."""
    done = shell.run("up", "--detach", "--port=0")
    for said in ("pg1: starting the primary", "pg2: copying all of pg1", "migration 0001", "demo catalogue loaded"):
        assert said in done.stdout
    commands = done.stdout.split("Try:\n")[1]
    tried = subprocess.run(["sh", "-ec", commands], capture_output=True, text=True, timeout=30, check=False)
    assert tried.returncode == 0
    assert '"name":"Camo Onesie"' in tried.stdout
    assert tried.stdout.count("HTTP/1.1 200") == 1
    assert '"sku_id":1' in tried.stdout


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGHUP))],
)
def test_signal_while_starting_leaves_nothing_running(shell: Shell, number: signal.Signals) -> None:
    """Whatever was started so far is stopped again."""
    child = shell.start("up", "--port=0")
    wait_until(lambda: "copying" in (line := child.stdout.readline()) or not line, timeout_s=30)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors.strip() == "atelier: interrupted"
    assert shell.is_all_stopped()
    shell.up()


def test_down_ends_an_up_in_another_terminal(shell: Shell) -> None:
    """As Ctrl-C there would."""
    child = shell.start("up", "--port=0")
    shell.await_ready(child)
    shell.run("down")
    child.communicate(timeout=30)
    assert child.returncode == 0
    assert shell.is_all_stopped()


def test_up_whose_service_dies_says_so_and_stops_the_cluster(shell: Shell) -> None:
    """A cluster without its service would be left behind unseen; the workers of a killed service, too."""
    child = shell.start("up", "--port=0")
    shell.await_ready(child)
    record = read_record(DataFolder(shell.data_dir))
    assert record is not None
    workers = psutil.Process(record.pid).children()
    assert workers
    os.kill(record.pid, signal.SIGKILL)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "the service ended with code -9" in errors
    assert shell.is_all_stopped()
    assert not any(process.is_alive(worker) for worker in workers)


def test_service_killed_while_detached_is_replaced(shell: Shell) -> None:
    """Its workers would go on serving and keep the port."""
    made = shell.up()
    record = read_record(DataFolder(shell.data_dir))
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    wait_until(lambda: not record.is_running())
    port = made["url"].rpartition(":")[2]
    again = json.loads(shell.run("up", "--detach", "--json", f"--port={port}").stdout)
    assert again["url"] == made["url"]


def test_taken_port_is_one_line_and_leaves_nothing_running(shell: Shell) -> None:
    """Refused before the cluster is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = shell.run("up", "--detach", f"--port={port}", code=1)
    assert done.stderr.splitlines()[-1].startswith(f"atelier: cannot listen on 127.0.0.1:{port}")
    assert shell.is_all_stopped()


def test_service_that_cannot_start_shows_the_end_of_its_log(shell: Shell) -> None:
    """And the cluster that was started for it is stopped."""
    shell.environ["ATELIER_STRATEGY"] = "by-horoscope"
    done = shell.run("up", "--detach", "--port=0", code=2)
    assert "ATELIER_STRATEGY takes one of" in done.stderr
    assert shell.is_all_stopped()


def test_reads_go_on_without_a_replica_and_it_comes_back(shell: Shell) -> None:
    """Kill -9 of the only replica: the primary serves; `cluster start` brings the replica back."""
    made = shell.up()
    shell.run("cluster", "kill", "pg2")
    assert httpx.get(f"{made['url']}/products").status_code == 200
    shell.run("cluster", "start")
    served_by = "Atelier-Served-By"
    wait_until(lambda: httpx.get(f"{made['url']}/products").headers[served_by] == "pg2")


def test_verbs_break_the_cluster_and_mend_it(shell: Shell) -> None:
    """Freeze, thaw, pause-replay, resume-replay, promote, rejoin: what each one says it does is so."""
    url = shell.up("--replicas=2")["url"]
    cluster = EmbeddedCluster.open(shell.data_dir)
    primary, replica = cluster.node("pg1"), cluster.node("pg2")

    def is_frozen() -> bool:
        found = replica.running()
        return found is not None and found.is_frozen()

    shell.run("cluster", "freeze", "pg2")
    assert is_frozen()
    shell.run("cluster", "thaw", "pg2")
    assert not is_frozen()
    assert replica.sql("select 1") == "1"
    assert replica.sql("select pg_get_wal_replay_pause_state()") == "not paused"
    shell.run("cluster", "pause-replay", "pg2")
    assert replica.sql("select pg_get_wal_replay_pause_state()") == "paused"
    shell.run("cluster", "resume-replay", "pg2")
    assert replica.sql("select pg_get_wal_replay_pause_state()") == "not paused"

    shell.run("cluster", "freeze", "pg1")
    assert "frozen, and left behind" in shell.run("cluster", "promote", "pg2").stderr
    assert replica.sql("select pg_is_in_recovery()") == "f"
    shell.run("cluster", "thaw", "pg1")
    assert primary.sql("select pg_is_in_recovery()") == "f"
    shell.run("cluster", "rejoin", "pg1")
    assert primary.sql("select pg_is_in_recovery()") == "t"
    streaming = "select application_name from pg_stat_replication where state = 'streaming' order by 1"
    assert replica.sql(streaming).split() == ["pg1", "pg3"]
    wait_until(
        lambda: roles_at(url) == {"pg1": "replica", "pg2": "primary", "pg3": "replica"}, what="the service's view"
    )


def test_replicas_are_added_and_never_taken_away(shell: Shell) -> None:
    """The folder was made for one replica: two are wanted, then none, and that is said."""
    made = shell.up("--replicas=2")
    assert [(node["name"], node["role"]) for node in made["nodes"]] == [
        ("pg1", "primary"),
        ("pg2", "replica"),
        ("pg3", "replica"),
    ]
    shell.run("down")
    fewer = shell.run("up", "--detach", "--json", "--port=0", "--replicas=0")
    assert "the cluster has 2 replicas already, and keeps them" in fewer.stderr.splitlines()
    assert [node["name"] for node in json.loads(fewer.stdout)["nodes"]] == ["pg1", "pg2", "pg3"]


def test_nothing_of_ours_runs_as_superuser(shell: Shell) -> None:
    """After `up` neither the service nor a command, a read or an import connects as `postgres`, on any node."""
    EmbeddedCluster.create_or_open(shell.data_dir, extra_settings={"log_connections": "on"})
    made = shell.up()
    nodes = EmbeddedCluster.open(shell.data_dir).nodes
    read_so_far = {name: node.log.stat().st_size for name, node in nodes.items()}
    headers = {"Authorization": f"Bearer {made['api_key']}", "Idempotency-Key": secrets.token_hex(8)}
    body = {"reason": "found", "lines": [{"sku_id": 1, "delta": 3}]}
    assert httpx.post(f"{made['url']}/inventory/adjustments", json=body, headers=headers).status_code == 200
    assert httpx.get(f"{made['url']}/products").status_code == 200
    catalogue = shell.data_dir.parent / "catalogue"
    shell.run("export", str(catalogue))
    shell.run("import", str(catalogue), "--rejects", str(shell.data_dir.parent / "rejects.csv"))
    assert httpx.get(f"{made['url']}/products").status_code == 200
    connected = set()
    for name, node in nodes.items():
        with node.log.open("rb") as log:
            log.seek(read_so_far[name])
            connected |= set(re.findall(rb"connection authorized: user=(\w+)", log.read()))
        # The one that asks is the test's own.
        others = (
            "select usename from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        assert "postgres" not in node.sql(others).split()
    assert b"migrator" in connected, "the import's own"
    assert b"postgres" not in connected


def test_service_is_not_given_the_passwords_of_superuser_and_migrator(shell: Shell) -> None:
    """Neither by name nor under another one, to no process of it; those that it needs are there."""
    shell.environ["ATELIER_MIGRATOR_PASSWORD"] = "of-another-cluster"
    shell.up()
    record = read_record(DataFolder(shell.data_dir))
    assert record is not None
    passwords = DataFolder(shell.data_dir).load_secrets().passwords
    for environ in environments(record.pid):
        assert known_in(environ, passwords) == {"reader", "writer", "monitor"}
        assert not {name for name in environ if "MIGRATOR" in name or "SUPERUSER" in name}


def test_status_asks_the_service_or_else_the_nodes(shell: Shell) -> None:
    """The same form either way, with roles, also when a node is down."""
    url = shell.up()["url"]
    through_service = json.loads(shell.run("status", "--json").stdout)["nodes"]
    assert [node["role"] for node in through_service] == ["primary", "replica"]
    assert through_service[0].keys() == httpx.get(f"{url}/cluster").json()["nodes"][0].keys()
    table = shell.run("status").stdout
    assert all(word in table for word in ("node", "role", "timeline", "lag ms", "pg1", "primary", "pg2", "replica"))
    shell.run("down")
    shell.run("cluster", "start")
    shell.run("cluster", "kill", "pg2")
    without = json.loads(shell.run("status", "--json").stdout)["nodes"]
    assert [(node["name"], node["role"]) for node in without] == [("pg1", "primary"), ("pg2", "unknown")]


def test_keys_are_made_listed_and_revoked(shell: Shell) -> None:
    """The text is printed once; a list never has it."""
    url = shell.up()["url"]
    made = shell.run("key", "create", "--name", "till-7", "--scope", "inventory:write").stdout.strip()
    assert made.startswith("atl_")
    headers = {"Authorization": f"Bearer {made}"}
    wait_until(lambda: httpx.get(f"{url}/inventory/1", headers=headers).status_code == 200)
    listed = shell.run("key", "list").stdout
    assert "till-7" in listed
    assert made not in listed
    assert "revoked" in shell.run("key", "revoke", "till-7").stdout
    wait_until(lambda: httpx.get(f"{url}/inventory/1", headers=headers).status_code == 401)
    assert "no valid key" in shell.run("key", "revoke", "till-7", code=1).stderr


def test_serve_finds_the_nodes_of_a_data_folder(shell: Shell) -> None:
    """A second service beside the first, that only reads, and is not given what it has no use for."""
    shell.up()
    port = find_free_port()
    child = shell.start("serve", "--role=reads", f"--port={port}")
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/health/ready").is_success
        except httpx.TransportError:
            return False

    wait_until(is_ready, timeout_s=30)
    assert httpx.get(f"{url}/products").status_code == 200
    assert httpx.post(f"{url}/inventory/adjustments").status_code in {404, 405}
    passwords = DataFolder(shell.data_dir).load_secrets().passwords
    assert not any(known_in(environ, passwords) for environ in environments(child.pid)), (
        "it looks them up in the folder"
    )
    assert roles_of(child.pid, EmbeddedCluster.open(shell.data_dir)) == {"reader", "monitor"}
    child.terminate()
    child.communicate(timeout=30)
    assert child.returncode == 0


# What the server's workers inherit: all that `serve` leaves in the environment when it hands over to it.
HANDED_OVER = """
import json, os, sys, types
from atelier.cli import main, serve
serve.make_server = lambda _: types.SimpleNamespace(serve=lambda: print(json.dumps(dict(os.environ))))
sys.exit(main.run(["serve", *sys.argv[1:]]))
"""


def test_workers_are_given_the_passwords_of_their_role(shell: Shell) -> None:
    """Wherever `serve` has them from: never the migrator's, and not the writer's to those who only read."""
    shell.run("cluster", "start")
    passwords = DataFolder(shell.data_dir).load_secrets().passwords
    given = {"all": {"reader", "writer", "monitor"}, "reads": {"reader", "monitor"}}
    named = {name: value for name, value in shell.environ.items() if name != "ATELIER_DATA_DIR"}
    for environ in (shell.environ, named | EmbeddedCluster.open(shell.data_dir).environment()):
        for role, expected in given.items():
            command = [sys.executable, "-P", "-c", HANDED_OVER, f"--role={role}", f"--port={shell.port}"]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            assert known_in(json.loads(done.stdout), passwords) == expected


def test_migrate_is_done_once(shell: Shell) -> None:
    """The second time nothing is left to do, and it says where the schema is."""
    shell.run("cluster", "start")
    first = shell.run("migrate")
    second = shell.run("migrate")
    assert first.stdout == second.stdout
    assert first.stdout.startswith("the schema is at migration ")
    assert "migration 0001" in first.stderr
    assert "migration 0001" not in second.stderr


def environments(pid: int) -> list[dict[str, str]]:
    """What a process and all that it has started were given: its own first."""
    first = psutil.Process(pid)
    workers = first.children(recursive=True)
    assert workers
    return [found.environ() for found in (first, *workers)]


def known_in(environ: Mapping[str, str], passwords: Mapping[str, str]) -> set[str]:
    """The roles whose passwords are anywhere in an environment."""
    return {role for role, password in passwords.items() if any(password in value for value in environ.values())}


def roles_of(pid: int, cluster: EmbeddedCluster) -> set[str]:
    """As whom a service is connected to the nodes."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    ports = {str(found.laddr.port) for one in processes for found in one.net_connections() if found.raddr}
    users = f"select usename from pg_stat_activity where client_port in ({','.join(ports)})"
    return {user for node in cluster.nodes.values() for user in node.sql(users).split()}


def roles_at(url: str) -> dict[str, str]:
    """The nodes' roles as the service sees them."""
    return {node["name"]: node["role"] for node in httpx.get(f"{url}/cluster").json()["nodes"]}
