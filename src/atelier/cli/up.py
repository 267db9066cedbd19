"""`atelier up`: everything, from nothing to a service that answers; and back again at Ctrl-C."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from atelier.cli.launch import (
    AlreadyRunningError,
    Launch,
    Running,
    describe_commands,
    describe_nodes,
    reap,
    refuse_second,
    start_everything,
)
from atelier.cli.options import data_dir_option, json_option, tell
from atelier.cli.service import ServiceError, find_service, stop_service
from atelier.embedded.cluster import EmbeddedCluster
from atelier.embedded.layout import DataFolder

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option("--detach", is_flag=True, help="Return when the service is ready; `atelier down` stops it.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option("--replicas", type=click.IntRange(0, 8), help="How many, for a new cluster.  [default: 2]")
@click.option("--empty", is_flag=True, help="Load no demo catalogue.")
@data_dir_option
@json_option
def up(*, detach: bool, port: int, replicas: int | None, empty: bool, data_dir: Path, as_json: bool) -> int:
    """Start the cluster, bring its schema up to date, load the demo catalogue if it is empty, and serve it.

    Stays in the foreground; Ctrl-C stops everything, and the data stay in the data folder.
    """
    say = tell if as_json else click.echo
    launch = Launch(data_dir, port, replicas, demo=not empty, watched=not detach, say=say)
    try:
        refuse_second(DataFolder(data_dir))
        return _detach(launch, as_json=as_json) if detach else _watch(launch, as_json=as_json)
    except AlreadyRunningError as error:
        if not detach:
            raise
        _announce_running(data_dir, as_json=as_json, line=str(error))
        return 0


def _detach(launch: Launch, *, as_json: bool) -> int:
    cluster = _open(launch)
    with _raise_on_signal(), _undo_on_failure(cluster):
        _announce(start_everything(launch, cluster), cluster, as_json=as_json)
    return 0


def _watch(launch: Launch, *, as_json: bool) -> int:
    """Runs in the foreground until a signal comes or the service ends."""
    cluster = _open(launch)
    with _raise_on_signal():
        with _undo_on_failure(cluster):
            running = start_everything(launch, cluster)
        try:
            _announce(running, cluster, as_json=as_json)
            if not as_json:
                launch.say("\nCtrl-C stops everything; the data stay.")
            code = running.child.wait()
        except KeyboardInterrupt:
            code = None
        finally:
            _ignore_signals(launch)
            launch.say("stopping the service")
            stop_service(cluster.folder)
            reap(running.child)
            cluster.stop()
    if code is not None:
        raise ServiceError(f"the service ended with code {code}; see {cluster.folder.service_log}")
    launch.say("stopped")
    return 0


def _open(launch: Launch) -> EmbeddedCluster:
    return EmbeddedCluster.create_or_open(launch.data_dir, launch.replicas, say=launch.say)


@contextmanager
def _undo_on_failure(cluster: EmbeddedCluster) -> Iterator[None]:
    """Stops what a failed start has started, unless the cluster ran before."""
    ran = bool(cluster.running())
    try:
        yield
    except AlreadyRunningError:
        raise
    except BaseException:
        if not ran:
            cluster.stop()
        raise


@contextmanager
def _raise_on_signal() -> Iterator[None]:
    """Makes every wish to end this process look like Ctrl-C."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals(launch: Launch) -> None:
    """While stopping, another Ctrl-C changes nothing: half a stop would leave more behind than a whole one."""
    for number in _SIGNALS:
        signal.signal(number, lambda _number, _frame: launch.say("stopping already"))


def _announce(running: Running, cluster: EmbeddedCluster, *, as_json: bool) -> None:
    if as_json:
        _print_json(running.url, running.api_key, running.nodes)
    else:
        _print_text(running.url, running.api_key, cluster.folder)


def _announce_running(data_dir: Path, *, as_json: bool, line: str) -> None:
    """Tells again what the first `up` told.

    Raises:
        AtelierError: there is nothing (whole) to tell any more.
    """
    folder = DataFolder(data_dir)
    service, api_key = find_service(folder), folder.load_api_key()
    if service is None:
        raise ServiceError("the service has just ended; try again")
    if api_key is None:
        raise ServiceError(f"{line}, but {folder.api_key} is gone; after `atelier down` the next start makes a new key")
    if as_json:
        _print_json(service.url, api_key, describe_nodes(service.url, EmbeddedCluster.open(data_dir)))
    else:
        click.echo(line)
        _print_text(service.url, api_key, folder)


def _print_text(url: str, api_key: str, folder: DataFolder) -> None:
    lines = [
        "",
        f"  API      {url}",
        f"  docs     {url}/docs",
        f"  cluster  {url}/cluster",
        f"  key      {api_key}  (all scopes; kept in {folder.api_key})",
        "",
        "Try:",
        *(f"  {command}" for command in describe_commands(url, folder.api_key)),
    ]
    click.echo("\n".join(lines))


def _print_json(url: str, api_key: str, nodes: list[dict[str, object]]) -> None:
    click.echo(json.dumps({"url": url, "api_key": api_key, "nodes": nodes}))


def register(group: click.Group) -> None:
    """Adds the command."""
    group.add_command(up)
