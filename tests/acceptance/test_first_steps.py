"""What a newcomer does, in order, with the real command: up, look, break, mend, import, down."""

import itertools
import json
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support import find_free_port, open_folder, plain_environment, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NODE_FIELDS = [
    *("name", "role", "state", "timeline", "received_lsn", "replayed_lsn"),
    *("lag_bytes", "lag_ms", "in_flight", "ejected_until", "reason"),
]
STATUS_COLUMNS = ["node", "role", "state", "timeline", "replayed LSN", "lag bytes", "lag ms"]
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "catalogue-10"
DEMO_FIRST = [
    ("Camo Onesie", "140", "Jackets"),
    ("Bright Future Sunglasses", "69", "Accessories"),
    ("Morning Joggers", "40", "Pants"),
]


# What was read a moment ago is not read again, but remembered: numbers of pages that nobody has asked for yet.
UNASKED = itertools.count(2)


@dataclass(frozen=True)
class Home:
    """A data folder with a running service."""

    folder: Path
    url: str
    key: str

    def run(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return atelier(*words, "--data-dir", str(self.folder), check=check)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={k.replace("_", "-"): v for k, v in headers.items()}, timeout=10)

    def read_unasked(self, times: int = 1) -> list[httpx.Response]:
        """Reads what no process can have in its memory, so that a node answers."""
        return [self.get(f"/products?page={next(UNASKED)}&count=3") for _ in range(times)]

    def post(self, path: str, body: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}", "Idempotency-Key": uuid.uuid4().hex}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=15)

    def port_of(self, node: str) -> int:
        return json.loads((self.folder / "cluster.json").read_text())["ports"][node]

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["name"]: node for node in self.get("/cluster").json()["nodes"]}


def atelier(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Runs the command as a person would, without the tests' own environment."""
    command = [sys.executable, "-m", "atelier.cli.main", *words]
    result = subprocess.run(
        command,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert not check or result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """`atelier up --detach`, and `atelier down` in the end."""
    with open_folder() as folder:
        data = folder / "data"
        started = atelier("up", "--detach", "--json", "--data-dir", str(data), "--port", str(find_free_port()))
        try:
            told = json.loads(started.stdout)
            yield Home(data, told["url"], told["api_key"])
        finally:
            atelier("down", "--data-dir", str(data))


def test_products_are_answered_by_both_replicas_in_turn(home: Home) -> None:
    """The demo catalogue is there, and the primary is left alone."""
    answers = home.read_unasked(20)
    first = [(item["name"], item["default_price"], item["category"]) for item in home.get("/products?count=3").json()]
    assert first == DEMO_FIRST
    replicas = {name for name, node in home.nodes().items() if node["role"] == "replica"}
    assert nodes_of(answers) == replicas
    assert len(replicas) == 2


def test_cluster_tells_of_every_node_in_the_contracts_words(home: Home) -> None:
    """Each field by its name, whatever the node's role."""
    told = home.get("/cluster").json()
    assert list(told) == ["nodes"]
    assert [list(node) for node in told["nodes"]] == [NODE_FIELDS] * 3


def test_second_up_finds_the_service_running(home: Home) -> None:
    """Nobody gets two services over one data folder."""
    again = home.run("up", "--detach", "--json")
    assert json.loads(again.stdout)["url"] == home.url


def test_adjustment_is_seen_by_a_read_that_carries_its_token(home: Home) -> None:
    """Read your writes, and exactly once."""
    before = home.get("/inventory/1", Authorization=f"Bearer {home.key}").json()
    answer = home.post("/inventory/adjustments", {"reason": "found", "lines": [{"sku_id": 1, "delta": 3}]})
    assert answer.status_code == 200
    after = home.get("/inventory/1", Authorization=f"Bearer {home.key}", Atelier_Token=answer.headers["Atelier-Token"])
    assert after.json()["on_hand"] == before["on_hand"] + 3


def test_status_shows_every_node_with_its_role(home: Home) -> None:
    """As a table for people and as JSON for programs."""
    table = home.run("status").stdout
    assert all(word in table for word in ("pg1", "primary", "replica", "streaming"))
    heads = next(line for line in table.splitlines() if "node" in line)
    assert [head.strip() for head in heads.strip("┃").split("┃")] == STATUS_COLUMNS
    rows = json.loads(home.run("status", "--json").stdout)["nodes"]
    assert {row["role"] for row in rows} == {"primary", "replica"}
    assert [list(row) for row in rows] == [NODE_FIELDS] * 3


def test_reads_go_on_when_a_replica_is_killed_and_it_comes_back(home: Home) -> None:
    """Kill -9 of a postmaster by hand, as an accident would have it."""
    (victim,) = [process for process in postmasters(home.folder) if "pg3" in " ".join(process.cmdline())]
    victim.kill()
    assert statuses_of(home.read_unasked(50)) == {200}
    wait_until(lambda: home.nodes()["pg3"]["role"] == "unknown", what="the service's word that pg3 is gone")
    answers = home.read_unasked(50)
    assert (statuses_of(answers), nodes_of(answers)) == ({200}, {"pg2"})
    home.run("cluster", "start", "pg3")
    wait_until(lambda: home.nodes()["pg3"]["state"] == "streaming", what="the return of pg3")
    wait_until(lambda: nodes_of(home.read_unasked()) == {"pg3"}, what="a read from pg3")


def test_service_follows_a_node_to_another_port(home: Home) -> None:
    """A stranger took the port while the node was down; nobody restarts the service for that."""
    port = home.port_of("pg3")
    home.run("cluster", "stop", "pg3")
    with socket.create_server(("127.0.0.1", port)):
        home.run("cluster", "start", "pg3")
    assert home.port_of("pg3") != port
    wait_until(lambda: home.nodes()["pg3"]["state"] == "streaming", what="the service's sight of pg3")


def test_promoted_replica_takes_commands_without_a_restart(home: Home) -> None:
    """Kill -9 of the primary, a promotion by hand, and the old primary returns as a replica."""
    home.run("cluster", "kill", "pg1")
    assert statuses_of(home.read_unasked(20)) == {200}
    wait_until(lambda: home.nodes()["pg1"]["role"] == "unknown", what="the service's word that pg1 is gone")
    answers = home.read_unasked(20)
    assert (statuses_of(answers), nodes_of(answers)) == ({200}, {"pg2", "pg3"})
    home.run("cluster", "promote", "pg2")
    wait_until(lambda: home.nodes()["pg2"]["role"] == "primary", what="the new primary")
    answer = home.post("/inventory/adjustments", {"reason": "after", "lines": [{"sku_id": 1, "delta": 1}]})
    assert answer.status_code == 200
    wait_until(lambda: home.nodes()["pg3"]["state"] == "streaming", what="pg3 following the new primary")
    answers = home.read_unasked(20)
    assert (statuses_of(answers), nodes_of(answers)) == ({200}, {"pg3"})
    home.run("cluster", "start", "pg1")
    wait_until(lambda: home.nodes()["pg1"]["state"] == "streaming", what="the return of pg1")
    assert {name: node["role"] for name, node in home.nodes().items()} == {
        "pg1": "replica",
        "pg2": "primary",
        "pg3": "replica",
    }


def test_import_replaces_the_catalogue(home: Home) -> None:
    """The course's ten products, whole, on every node."""
    if not SHARED.is_dir():
        pytest.skip("the course's ten products are not on this machine")
    home.run("import", str(SHARED), "--rejects", str(home.folder.parent / "rejects.csv"))
    wait_until(lambda: home.get("/products/5/related").json() == [6, 6, 8, 9, 1, 3], what="the new catalogue")
    assert len(home.get("/products?count=1000", Atelier_Consistency="strong").json()) == 10


def test_data_and_roles_survive_down_and_up(home: Home) -> None:
    """The next start finds the same catalogue, key and primary; the key still works."""
    before = home.get("/products?count=1000", Atelier_Consistency="strong").json()
    port = home.url.rsplit(":", 1)[1]
    home.run("down")
    assert postmasters(home.folder) == []
    told = json.loads(home.run("up", "--detach", "--json", "--port", port).stdout)
    assert told["api_key"] == home.key
    assert home.get("/products?count=1000", Atelier_Consistency="strong").json() == before
    assert home.nodes()["pg2"]["role"] == "primary"


def test_later_start_says_again_where_all_is_and_what_to_try(home: Home) -> None:
    """As text: the addresses, the key with its place, and three lines that work as they stand."""
    before = home.get("/inventory/1", Authorization=f"Bearer {home.key}", Atelier_Consistency="strong").json()
    port = home.url.rsplit(":", 1)[1]
    home.run("down")
    told = home.run("up", "--detach", "--port", port).stdout
    places = {home.url, f"{home.url}/docs", f"{home.url}/cluster", home.key, str(home.folder / "api-key")}
    assert places - {word.rstrip(")") for word in told.split()} == set()
    tries = [line.strip() for line in told[told.index("Try:") :].splitlines() if "curl" in line]
    assert len(tries) == 3
    delta = json.loads(re.search(r"-d '(.+?)'", tries[1])[1])["lines"][0]["delta"]  # type: ignore[index]
    assert delta > 0
    script = "\n".join(["set -e", *tries, 'test -n "$TOKEN"'])
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["sku_id"], last["on_hand"]) == (1, before["on_hand"] + delta)


@pytest.mark.parametrize("name", ["api-key", "secrets.json"])
def test_secrets_are_for_their_owner_alone(home: Home, name: str) -> None:
    """Mode 0600."""
    assert (home.folder / name).stat().st_mode & 0o777 == 0o600


def nodes_of(answers: list[httpx.Response]) -> set[str]:
    """Who gave them."""
    return {answer.headers["Atelier-Served-By"] for answer in answers}


def statuses_of(answers: list[httpx.Response]) -> set[int]:
    """How they ended."""
    return {answer.status_code for answer in answers}


def postmasters(folder: Path) -> list[psutil.Process]:
    """The servers whose data lie in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if str(folder.resolve()) in line and "config_file" in line:
                found.append(process)
        except psutil.Error:
            continue
    return found
