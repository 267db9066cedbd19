"""Notes with every seal of the audit where the log stood, so that a token can be made of it.

Revision ID: 0007
Revises: 0006
"""

from alembic import op

from atelier.migrate import run_script

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Empty in seals that were made before: their hashes are over their entries alone.
COLUMNS = """
alter table audit_seal
    add column system_id bigint,
    add column timeline  integer,
    add column position  pg_lsn,
    add constraint audit_seal_position_is_whole check (num_nulls(system_id, timeline, position) in (0, 3));
comment on column audit_seal.position is
    'Where the log stood, on that timeline of that system, when every entry of this seal was committed.';
"""


def upgrade() -> None:
    """Adds three columns that may be empty, which rewrites nothing."""
    run_script(op.get_bind(), COLUMNS)


def downgrade() -> None:
    """Forgets the positions, and with them what those seals can be checked by."""
    op.execute("alter table audit_seal drop column system_id, drop column timeline, drop column position")
