"""`atelier up` and `atelier down` as a newcomer uses them: real processes, real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
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
                child.kill()
                child.communicate()
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
    assert shell.run("up", "--detach").stdout == f"already running at {made['url']}\n"


def test_down_stops_everything_and_the_next_up_finds_all_again(shell: Shell) -> None:
    """The same key, the same data, no second demo catalogue."""
    made = shell.up()
    shell.run("down")
    assert shell.is_all_stopped()
    assert shell.run("down").stderr == "nothing was running\n"
    again = shell.up()
    assert again["api_key"] == made["api_key"]
    assert len(httpx.get(f"{again['url']}/products", params={"count": 1000}).json()) == 36


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
    child.terminate()
    child.communicate(timeout=30)
    assert child.returncode == 0


def test_migrate_is_done_once(shell: Shell) -> None:
    """The second time nothing is left to do, and it says where the schema is."""
    shell.run("cluster", "start")
    first = shell.run("migrate")
    second = shell.run("migrate")
    assert first.stdout == second.stdout
    assert first.stdout.startswith("the schema is at migration ")
    assert "migration 0001" in first.stderr
    assert "migration 0001" not in second.stderr
