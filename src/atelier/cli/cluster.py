"""`atelier cluster`: take the embedded cluster apart, and put it together again."""

from pathlib import Path

import click

from atelier.cli.options import data_dir_option, tell
from atelier.embedded.cluster import EmbeddedCluster


@click.group()
def cluster() -> None:
    """Start, stop, break and mend the nodes of an embedded cluster."""


@cluster.command()
@click.argument("node", required=False)
@data_dir_option
def start(node: str | None, data_dir: Path) -> None:
    """Start NODE, or all; one that a promotion left behind becomes a replica, one whose slot was lost a new copy."""
    opened = EmbeddedCluster.open(data_dir, say=tell)
    if node is None:
        opened.start()
    else:
        opened.start_node(node)


@cluster.command()
@click.argument("node", required=False)
@data_dir_option
def stop(node: str | None, data_dir: Path) -> None:
    """Stop NODE, or all, in good order."""
    opened = EmbeddedCluster.open(data_dir, say=tell)
    if node is None:
        opened.stop()
    else:
        opened.stop_node(node)


@cluster.command()
@click.argument("node")
@data_dir_option
def kill(node: str, data_dir: Path) -> None:
    """End NODE as a crash would (SIGKILL)."""
    EmbeddedCluster.open(data_dir, say=tell).kill(node)


@cluster.command()
@click.argument("node")
@data_dir_option
def freeze(node: str, data_dir: Path) -> None:
    """Stop the processes of NODE where they are, as a machine that hangs (SIGSTOP)."""
    EmbeddedCluster.open(data_dir, say=tell).freeze(node)


@cluster.command()
@click.argument("node")
@data_dir_option
def thaw(node: str, data_dir: Path) -> None:
    """Let a frozen NODE go on (SIGCONT)."""
    EmbeddedCluster.open(data_dir, say=tell).thaw(node)


@cluster.command("pause-replay")
@click.argument("node")
@data_dir_option
def pause_replay(node: str, data_dir: Path) -> None:
    """Let NODE receive, but not show, what the primary writes from now on."""
    EmbeddedCluster.open(data_dir, say=tell).pause_replay(node)


@cluster.command("resume-replay")
@click.argument("node")
@data_dir_option
def resume_replay(node: str, data_dir: Path) -> None:
    """Let NODE show what it has received."""
    EmbeddedCluster.open(data_dir, say=tell).resume_replay(node)


@cluster.command("delay-apply")
@click.argument("node")
@click.argument("delay_ms", metavar="MS", type=click.IntRange(0, 86_400_000))
@data_dir_option
def delay_apply(node: str, delay_ms: int, data_dir: Path) -> None:
    """Let NODE show every commit MS milliseconds late, until 0 is asked for, or until it is started or promoted."""
    EmbeddedCluster.open(data_dir, say=tell).delay_apply(node, delay_ms)


@cluster.command()
@click.argument("node")
@data_dir_option
def promote(node: str, data_dir: Path) -> None:
    """Make the replica NODE the primary, and the others follow it.

    A primary that answers hands over first, and loses nothing; one that is dead or frozen is left behind.
    """
    EmbeddedCluster.open(data_dir, say=tell).promote(node)


@cluster.command()
@click.argument("node")
@click.option("--clone", is_flag=True, help="Copy all of the primary, though less might do.")
@data_dir_option
def rejoin(*, node: str, clone: bool, data_dir: Path) -> None:
    """Make NODE, whatever has become of it, a replica of the present primary."""
    EmbeddedCluster.open(data_dir, say=tell).rejoin(node, clone=clone)


def register(group: click.Group) -> None:
    """Adds the commands."""
    group.add_command(cluster)
