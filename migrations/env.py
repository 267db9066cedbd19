"""Runs the migrations as `migrator`, one migrating process at a time.

The connection comes from `config.attributes["connection"]`: `atelier.migrate` opens, locks and closes it.
"""

from alembic import context
from sqlalchemy import Connection


def run(connection: Connection) -> None:
    """Applies the pending migrations, each in its own transaction, on the connection that was handed in."""
    context.configure(connection=connection, target_metadata=None, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])
