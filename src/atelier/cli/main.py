"""The command's entry: one group, and one place where an error becomes one line and an exit code."""

import sys
from collections.abc import Sequence

import click

from atelier.cli import audit, catalogue, cluster, down, keys, migration, serve, status, up
from atelier.errors import AtelierError, SettingsError

_FAILED, _WRONG_USE, _INTERRUPTED = 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="atelier", prog_name="atelier")
def cli() -> None:
    """The catalogue and inventory service of an online shop, over PostgreSQL and its replicas."""


for module in (up, down, serve, migration, catalogue, status, cluster, keys, audit):
    module.register(cli)


def run(arguments: Sequence[str]) -> int:
    """Runs one command.

    Returns:
        The exit code: 0; 1 for what failed, 2 for what was asked wrongly, 130 after Ctrl-C. What went wrong is one
        line on standard error.
    """
    try:
        result = cli.main(args=list(arguments), prog_name="atelier", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", code=_INTERRUPTED)
    except BrokenPipeError:
        return _FAILED  # whoever read our output has gone, and nobody is left to be told
    except (click.ClickException, SettingsError) as error:
        return _complain(_describe(error), code=_WRONG_USE)
    except (AtelierError, OSError) as error:
        return _complain(_describe(error), code=_FAILED)
    return result if isinstance(result, int) else 0


def main() -> None:
    """Runs the command line that this process was started with."""
    sys.exit(run(sys.argv[1:]))


def _describe(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError):
        # What the system refused, where the code that asked did not think of it: a full disk, a closed folder.
        reason = error.strerror or str(error) or type(error).__name__
        return f"{error.filename}: {reason}" if error.filename else reason
    return str(error)


def _complain(message: str, *, code: int) -> int:
    click.echo(f"atelier: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
