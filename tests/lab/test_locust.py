"""Locust's own command with the lab's users, and the rule that the lab is a client."""

import ast
import subprocess
import sys
from pathlib import Path

import httpx

import loadtest
from tests.lab.stub import wait_until

ROOT = Path(loadtest.__file__).parent.parent


def test_lab_imports_nothing_of_the_service():
    """It knows of the service what the contract says, and no more."""
    for path in sorted((ROOT / "loadtest").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "atelier"], path


def test_web_page_of_locust_offers_the_labs_users(free_port):
    """`make load` opens it; the users and the lab's own options are there."""
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--web-host", "127.0.0.1"]
    command += ["--web-port", str(free_port), "--host", "http://127.0.0.1:9", "--class-picker"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{free_port}/"
        wait_until(lambda: answers(url), within_s=30)
        page = httpx.get(url, timeout=10).text
        assert [
            name for name in ("Shopper", "Checkout", "Warehouse", "CatalogueAdmin", "Watcher") if name not in page
        ] == []
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(url: str) -> bool:
    """Whether there is a page."""
    try:
        return httpx.get(url, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
