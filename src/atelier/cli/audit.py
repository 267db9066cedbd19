"""`atelier audit`: is what was written down about every command still what was written down?"""

from pathlib import Path

import click

from atelier.access.sealer import verify_audit
from atelier.cli.database import on_primary
from atelier.cli.options import data_dir_option, find_environment

_SHOWN = 10


@click.group()
def audit() -> None:
    """Look after the audit of all commands."""


@audit.command()
@data_dir_option
def verify(data_dir: Path) -> None:
    """Check the chain of hashes over all entries; name what is broken, and what is not sealed yet."""
    report = on_primary(find_environment(data_dir), "writer", verify_audit)
    click.echo(f"sealed: {report.entries} entries in {report.seals} seals")
    if report.newest_hash:
        click.echo(f"newest seal: {report.newest_hash}")
    if report.unsealed:
        shown = ", ".join(map(str, report.unsealed[:_SHOWN]))
        more = f" and {len(report.unsealed) - _SHOWN} more" if len(report.unsealed) > _SHOWN else ""
        click.echo(f"not sealed yet: {len(report.unsealed)} entries: {shown}{more}")
    for problem in report.broken:
        click.echo(f"broken: {problem}", err=True)
    if report.broken:
        raise click.exceptions.Exit(1)


def register(group: click.Group) -> None:
    """Adds the commands."""
    group.add_command(audit)
