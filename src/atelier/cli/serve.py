"""`atelier serve`: the HTTP service in this process and its workers."""

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from threading import Timer

import click
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.server.mp import MPServer

from atelier.cli.options import data_dir_option, find_environment
from atelier.embedded.waiting import wait_for
from atelier.errors import AtelierError
from atelier.settings import Settings
from atelier.web.draining import LAST_CALL, NOTICE, RELIST

# Of connections, per worker: requests beyond what the pools can serve are refused by the service itself.
_MOST_CONNECTIONS = 1024
_WAITING_CONNECTIONS = 2048
_HEADER_READ_MS = 10_000
_HEADER_BYTES = 64 * 1024
# Beyond the drain time of the settings, for closing what the drain has left.
_KILL_MARGIN_S = 5


class PortInUseError(AtelierError):
    """Somebody else listens on the port."""


@click.command()
@click.option("--role", type=click.Choice(["all", "reads", "writes"]), help="Which sides to serve.  [default: all]")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: 8000]")
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes.  [default: 1]")
@data_dir_option
def serve(role: str | None, host: str | None, port: int | None, workers: int | None, data_dir: Path) -> None:
    """Serve HTTP, over the nodes that ATELIER_NODES names or those of an embedded cluster.

    Options win over ATELIER_ROLE, ATELIER_HOST, ATELIER_PORT and ATELIER_WORKERS. The file that ATELIER_NODES_FILE
    names is read again every two seconds, and on SIGHUP.
    """
    options = {"ROLE": role, "HOST": host, "PORT": port, "WORKERS": workers}
    chosen = {f"ATELIER_{name}": str(value) for name, value in options.items() if value is not None}
    environ = {**find_environment(data_dir), **chosen}
    settings = Settings.from_environment(environ)
    ensure_port_free(settings.host, settings.port)
    _hand_over(environ, settings)
    for told in (NOTICE, LAST_CALL, RELIST):
        signal.signal(told, signal.SIG_IGN)  # inherited by the workers: one that is still starting does not die of it
    make_server(settings).serve()


def ensure_port_free(host: str, port: int, *, patience_s: float = 0) -> None:
    """Finds out before anything is started whether the port can be had.

    The server shares its port among its workers, and would share it with a stranger's workers, too.

    Args:
        host: where to listen.
        port: the port there.
        patience_s: how long to wait for who is known to be leaving it.

    Raises:
        PortInUseError: it cannot.
    """
    wait_for(lambda: _find_obstacle(host, port) is None, timeout_s=patience_s)
    obstacle = _find_obstacle(host, port)
    if obstacle:
        raise PortInUseError(f"cannot listen on {host}:{port}: {obstacle.strerror}; choose another --port")


def _find_obstacle(host: str, port: int) -> OSError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None


class NoticeServer(MPServer):
    """Tells its workers that the end is near, and ends when who spreads requests over them has had time to notice."""

    notice_ms = 0

    def signal_handler_interrupt(self, *args: object, **kwargs: object) -> None:
        """Ends after the notice; at once when told a second time, or with no notice to give."""
        if not self.notice_ms:
            self._tell(LAST_CALL)
            super().signal_handler_interrupt(*args, **kwargs)  # type: ignore[no-untyped-call]  # the parent has no types
            return
        timer = Timer(self.notice_ms / 1000, self.signal_handler_interrupt)
        timer.daemon = True
        self.notice_ms = 0
        self._tell(NOTICE)
        timer.start()

    def signal_handler_reload(self, *_args: object, **_kwargs: object) -> None:
        """SIGHUP: every worker reads the list of nodes again. The server's own answer would be to replace them all."""
        self._tell(RELIST)

    def _tell(self, what: signal.Signals) -> None:
        for worker in self.wrks:
            with suppress(ProcessLookupError):
                if worker.inner.is_alive():
                    os.kill(worker.inner.pid, what)


def make_server(settings: Settings) -> MPServer:
    """The HTTP server: its bounds on connections, headers and on how long an end may take."""
    server = NoticeServer(
        "atelier.app:create_app_from_environment",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        factory=True,
        workers=settings.workers,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        websockets=False,
        backlog=_WAITING_CONNECTIONS,
        backpressure=_MOST_CONNECTIONS,
        http1_settings=HTTP1Settings(header_read_timeout=_HEADER_READ_MS, max_buffer_size=_HEADER_BYTES),
        respawn_failed_workers=True,
        workers_kill_timeout=settings.timeouts.drain_ms // 1000 + _KILL_MARGIN_S,
        process_name=None,
    )
    server.notice_ms = settings.timeouts.notice_ms
    return server


def _hand_over(environ: dict[str, str], settings: Settings) -> None:
    """Puts the settings where the workers find them, and nothing that they have no use for."""
    unneeded = {"ATELIER_MIGRATOR_PASSWORD"} | ({"ATELIER_WRITER_PASSWORD"} if settings.role == "reads" else set())
    for name in unneeded:
        for key in (name, f"{name}_FILE"):
            environ.pop(key, None)
            os.environ.pop(key, None)
    # The file may change, and make no sense when a worker is replaced: that one begins with what this process has read.
    environ = {**environ, "ATELIER_NODES": ",".join(map(str, settings.nodes))} if settings.nodes_file else environ
    os.environ.update({key: value for key, value in environ.items() if key.startswith("ATELIER_")})


def register(group: click.Group) -> None:
    """Adds the command."""
    group.add_command(serve)
