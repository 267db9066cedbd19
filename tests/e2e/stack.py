"""A deployment in containers, driven by `docker compose` as an operator would, and taken away again."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support import find_free_port

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "atelier-e2e"
BUILT_FOR = f"{PREFIX}-build"  # the project that images are labelled with: one for both files, so that they share them
PLAIN, HA = "compose.yaml", "compose.ha.yaml"


def run(*command: str, timeout_s: float = 120, env: dict[str, str] | None = None) -> str:
    """Runs a command to its end and gives what it wrote; a failure shows all of it."""
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()


def wait_for(condition: Callable[[], bool], *, within_s: float, what: str) -> float:
    """Waits until a condition holds, and tells for how long; fails the test when it does not in time."""
    begun_s = time.monotonic()
    while not condition():
        assert time.monotonic() - begun_s < within_s, f"{what} did not come true within {within_s} s"
        time.sleep(0.1)
    return time.monotonic() - begun_s


@dataclass
class Stack:
    """One compose project of the tests' own: its name, images, port and volumes are nobody else's."""

    file: str
    environ: dict[str, str]
    port: int = field(default_factory=find_free_port)

    @property
    def project(self) -> str:
        """The project's name."""
        return f"{PREFIX}-{Path(self.file).stem.replace('.', '-')}"

    @property
    def key(self) -> str:
        """The demo API key, all scopes."""
        return self.exec("writes", "cat", "/run/atelier/demo/api-key")

    @property
    def _environment(self) -> dict[str, str]:
        return {**self.environ, "ATELIER_HTTP_PORT": str(self.port), "ATELIER_IMAGES": PREFIX}

    def compose(self, *arguments: str, timeout_s: float = 300) -> str:
        """Runs `docker compose` on the project."""
        named = ("-f", self.file, "-p", self.project)
        return run("docker", "compose", *named, *arguments, timeout_s=timeout_s, env=self._environment)

    def roll(self, service: str) -> None:
        """Replaces a service's containers one by one."""
        run("containers/roll", service, "-f", self.file, "-p", self.project, timeout_s=300, env=self._environment)

    @contextmanager
    def changed(self, **variables: str) -> Iterator["Stack"]:
        """The same deployment with variables set; the caller brings up what they are about."""
        yield replace(self, environ={**self.environ, **variables})

    def kill(self, container: str) -> None:
        """Ends a container's processes at once."""
        run("docker", "kill", container)

    def up(self, *arguments: str) -> None:
        """Brings it up, or to what the arguments say, and waits until all of it is healthy."""
        try:
            self.compose("up", "--wait", "--wait-timeout", "240", *arguments)
        except AssertionError as error:
            seen = self.compose("ps", "--all") + "\n" + self.compose("logs", "--tail", "15")
            raise AssertionError(f"{error}\n{seen}") from error

    def forget(self) -> None:
        """Removes the containers, volumes and networks."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        return self.compose("ps", "--quiet", service).split()

    def container(self, service: str) -> str:
        """The id of a service's only container, also when it is not running."""
        (found,) = self.compose("ps", "--all", "--quiet", service).split()
        return found

    def exec(self, service: str, *command: str) -> str:
        """Runs a command in a container of a service."""
        return self.compose("exec", "-T", service, *command)

    def sql(self, node: str, statement: str) -> list[list[str]]:
        """Asks one database server as its superuser, past the service."""
        text = self.exec(node, "psql", "--no-psqlrc", "-qAtX", "-F", "\t", "--dbname=atelier", "--command", statement)
        return [line.split("\t") for line in text.splitlines()]

    def state(self, service: str) -> dict[str, object]:
        """What the engine says of a service's only container."""
        found: dict[str, object] = json.loads(
            run("docker", "inspect", "-f", "{{json .State}}", self.container(service))
        )
        return found

    def is_well(self, service: str) -> bool:
        """Whether each of its containers is healthy, or has done what it is for."""
        form = "{{.State.Status}} {{.State.ExitCode}} {{with .State.Health}}{{.Status}}{{end}}"
        found = self.compose("ps", "--all", "--quiet", service).split()
        states = run("docker", "inspect", "-f", form, *found).splitlines()
        return {state.strip() for state in states} <= {"running 0 healthy", "exited 0"}

    def is_healthy(self, service: str) -> bool:
        """Whether its only container says so."""
        health = self.state(service).get("Health")
        return isinstance(health, dict) and health.get("Status") == "healthy"

    def break_network(self, service: str, *fault: str) -> None:
        """Does to a container's network what `containers/faults/network-fault` can do."""
        shared = f"container:{self.container(service)}"
        run("docker", "run", "--rm", "--network", shared, "--cap-add", "NET_ADMIN", f"{PREFIX}-faults", *fault)

    def services(self) -> list[str]:
        """The names of all services, those of profiles left out."""
        return self.compose("config", "--services").split()

    def ask_inside(self, service: str, path: str) -> str:
        """What a service answers to those who are inside, past the proxy."""
        script = f"import urllib.request as web; print(web.urlopen('http://127.0.0.1:8000{path}').read().decode())"
        return self.exec(service, "python3", "-c", script)

    def logs(self, service: str) -> str:
        """All that a service has logged."""
        return self.compose("logs", "--no-log-prefix", service)


@contextmanager
def running(file: str, environ: dict[str, str]) -> Iterator[Stack]:
    """A whole deployment from nothing, and nothing left of it afterwards."""
    stack = Stack(file, environ)
    stack.forget()  # what an interrupted run may have left
    try:
        stack.up()
        yield stack
    finally:
        stack.forget()


def remove_images() -> None:
    """Removes the images that the tests have built; the layers stay in the engine's build cache."""
    names = run("docker", "images", "--quiet", "--filter", f"reference={PREFIX}-*").split()
    if names:
        run("docker", "image", "rm", "--force", *sorted(set(names)))
    run("docker", "image", "prune", "--force", "--filter", f"label=com.docker.compose.project={BUILT_FOR}")
