"""Locust's own command with the lab's users, and the rule that the lab is a client."""

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

import loadtest
from tests.lab.stub import wait_until

ROOT = Path(loadtest.__file__).parent.parent
USERS = ("Shopper", "Checkout", "Warehouse", "CatalogueAdmin", "Refiller", "Editor", "Watcher")


# What a checker may use: what computes, the words of a history, and a history that somebody else has opened.
PURE = {"bisect", "collections", "dataclasses", "enum", "functools", "heapq", "itertools", "math", "operator", "typing"}
OWN = ("loadtest.checkers.", "loadtest.history.record.", "loadtest.history.store.History", "loadtest.history.store.Row")
ACTING = {"open", "print", "input", "exec", "eval", "__import__"}


def test_lab_imports_nothing_of_the_service():
    """It knows of the service what the contract says, and no more."""
    for path in sorted((ROOT / "loadtest").rglob("*.py")):
        assert not [name for name in imported(ast.parse(path.read_text())) if name.split(".")[0] == "atelier"], path


def test_checkers_do_no_io_and_read_no_clock():
    """A verdict follows from the history alone."""
    paths = sorted((ROOT / "loadtest" / "checkers").rglob("*.py"))
    assert len(paths) > 12
    assert {path.name: impure(path.read_text()) for path in paths} == {path.name: [] for path in paths}


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "from time import monotonic",
        "from random import Random",
        "from pathlib import Path",
        "from loadtest.history.store import StoredHistory",
        "from loadtest.client import Client",
        "text = open('/proc/uptime').read()",
    ],
)
def test_the_look_for_io_finds_some(line):
    """The check above can fail."""
    assert impure(f"from itertools import chain\n{line}\n")


def imported(tree):
    """The full names of all that is imported: `a.b.c` for `from a.b import c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def impure(source):
    """The names in a module that a checker has no use for."""
    tree = ast.parse(source)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & ACTING
    return sorted(
        used | {name for name in imported(tree) if name.split(".")[0] not in PURE and not name.startswith(OWN)}
    )


EXAMPLE = r"""
import re, sys
from functools import partial
from types import SimpleNamespace
from loadtest.scenarios.model import *
from loadtest.users.shoppers import Onlooker
from loadtest.users.staff import Warehouse

block = re.search(r"```python\n(Scenario\(.*?)```", sys.stdin.read(), re.DOTALL)[1]
scenario = eval(block)
done = []
cluster = SimpleNamespace(cluster=lambda *words: done.append(words))
for fault in scenario.faults(SimpleNamespace(embedded=cluster, replicas=("pg2", "pg3"))):
    fault.inflict()
    fault.mend()
assert done == [("freeze", "pg2"), ("thaw", "pg2"), ("freeze", "pg3"), ("thaw", "pg3")], done
"""


def test_scenario_in_the_guide_is_one():
    """What the guide shows can be put into the list as it stands."""
    guide = (ROOT / "docs" / "lab.md").read_text()
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE], cwd=ROOT, input=guide, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_web_page_of_locust_offers_the_labs_users(free_port):
    """`make load` opens it; users and options of the lab are there, but not the key, which everybody could read."""
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--web-host", "127.0.0.1"]
    command += ["--web-port", str(free_port), "--host", "http://127.0.0.1:9", "--class-picker"]
    command += ["--api-key", "of-all-scopes"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{free_port}/"
        wait_until(lambda: answers(url), within_s=30)
        page = httpx.get(url, timeout=10).text
        assert [name for name in (*USERS, "arrivals", "history") if name not in page] == []
        assert "of-all-scopes" not in page
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.cluster
@pytest.mark.slow
def test_processes_of_one_machine_leave_histories_that_are_checked_as_one(service, tmp_path):
    """Headless, in two processes: each makes a shop of its own, and together they are judged."""
    done = run_locust(service, tmp_path, "--headless", "--processes", "2", "-u", "24", "-r", "24", "-t", "8s")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    check_histories(tmp_path)


@pytest.mark.cluster
@pytest.mark.slow
def test_master_spreads_the_users_over_its_workers(service, tmp_path, free_port):
    """As over several machines: the master has the figures, the workers have the users and the histories."""
    port = str(free_port)
    workers = [start_locust(service, tmp_path, "--worker", "--master-port", port) for _ in range(2)]
    try:
        words = ["--master", "--headless", "--expect-workers", "2", "--master-bind-port", port]
        done = run_locust(service, tmp_path, *words, "-u", "24", "-r", "24", "-t", "8s")
        assert done.returncode == 0, done.stderr
        told = [worker.communicate(timeout=60)[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], told
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate(timeout=10)
    check_histories(tmp_path)


def test_service_that_is_not_there_is_told_in_one_line(tmp_path, free_port):
    """No users are let loose without a shop, and nobody has to read a traceback."""
    absent = SimpleNamespace(url=f"http://127.0.0.1:{free_port}", key="none")
    done = run_locust(absent, tmp_path, "--headless", "-u", "3", "-t", "5s")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert "making a product failed" in done.stderr


def start_locust(service, folder, *words):
    """Locust with the lab's users, in the background."""
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--host", service.url, *words]
    command += ["--api-key", service.key, "--history", str(folder / "history")]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_locust(service, folder, *words):
    """The same, to its end."""
    process = start_locust(service, folder, *words)
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate(timeout=10)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def check_histories(folder):
    """Two processes wrote down what they saw; all of it together is valid."""
    files = sorted(folder.glob("history.*"))
    assert [path.name for path in files] == ["history.0.1", "history.1.1"]
    command = [sys.executable, "-m", "loadtest", "check", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nvalid") + done.stdout.startswith("valid") == 12, done.stdout


def answers(url: str) -> bool:
    """Whether there is a page."""
    try:
        return httpx.get(url, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
