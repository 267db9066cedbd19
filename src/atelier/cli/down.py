"""`atelier down`: stops the service, then the cluster."""

from pathlib import Path

import click
import psutil

from atelier.cli.options import data_dir_option, tell
from atelier.cli.service import read_record, stop_service
from atelier.embedded.cluster import EmbeddedCluster
from atelier.embedded.process import is_alive
from atelier.embedded.waiting import wait_for
from atelier.errors import AtelierError

_OPERATOR_S = 120.0


@click.command()
@data_dir_option
def down(data_dir: Path) -> None:
    """Stop the service and the cluster of a data folder; the data stay."""
    cluster = EmbeddedCluster.open(data_dir, say=tell)
    record = read_record(cluster.folder)
    operator = record.operator() if record else None
    if operator:
        _end_operator(operator)
    served = stop_service(cluster.folder)
    ran = cluster.running()
    cluster.stop()
    tell("stopped" if operator or served or ran else "nothing was running")


def _end_operator(operator: psutil.Process) -> None:
    """Asks the `atelier up` in another terminal to stop everything, as Ctrl-C there would."""
    tell(f"stopping `atelier up` (process {operator.pid})")
    operator.terminate()
    if not wait_for(lambda: not is_alive(operator), timeout_s=_OPERATOR_S):
        raise AtelierError(f"process {operator.pid} does not stop")


def register(group: click.Group) -> None:
    """Adds the command."""
    group.add_command(down)
