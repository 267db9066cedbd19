"""The audit: who did what, appended with every command and sealed afterwards.

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# `xid` orders entries for sealing: every transaction below the oldest running one has ended, so nothing can still
# appear among them; neither ids nor times have that property.
TABLES = """
create sequence audit_entry_id_seq;

create table audit_entry (
    entry_id    bigint primary key default nextval('audit_entry_id_seq'),
    xid         xid8 not null default pg_current_xact_id(),
    at          timestamptz not null default clock_timestamp(),
    position    pg_lsn not null default pg_current_wal_insert_lsn(),
    actor       text not null,
    key_id      bigint not null,
    command     text not null,
    command_key text not null,
    target      text not null,
    status      smallint not null,
    before      text,
    after       text
);

create unique index audit_entry_order_idx on audit_entry (xid, entry_id);

comment on column audit_entry.position is 'Where the log stood when it was decided: its commit lies behind it.';

comment on column audit_entry.before is 'JSON of what the command changed, as it was; null when there was nothing.';

create table audit_seal (
    seal_id       bigint primary key,
    sealed_at     timestamptz not null default clock_timestamp(),
    last_xid      xid8 not null,
    last_entry_id bigint not null,
    entries       integer not null check (entries > 0),
    hash          bytea not null
);

comment on table audit_seal is
    'A chain: hash = SHA-256 of the seal before it and of the entries since, in (xid, entry_id) order.';
"""

GRANTS = """
revoke all on audit_entry, audit_seal from reader;

grant select, insert on audit_entry, audit_seal to writer;

grant usage on sequence audit_entry_id_seq to writer;
"""


def upgrade() -> None:
    """Makes the two append-only tables."""
    run(TABLES)
    run(GRANTS)


def downgrade() -> None:
    """Forgets the audit."""
    op.execute("drop table audit_seal, audit_entry")
    op.execute("drop sequence audit_entry_id_seq")


def run(script: str) -> None:
    """Executes the statements of a script, which blank lines separate."""
    for statement in script.strip().split("\n\n"):
        op.execute(statement)
