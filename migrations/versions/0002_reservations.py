"""Reservations: stock that is promised for a while.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# No foreign key to stock or sku: an import replaces those tables while reservations stay.
TABLES = """
create sequence reservation_id_seq;

create table reservation (
    reservation_id bigint primary key default nextval('reservation_id_seq'),
    catalogue_id   bigint not null,
    state          text not null default 'pending' check (state in ('pending', 'confirmed', 'released', 'expired')),
    reason         text,
    expires_at     timestamptz not null,
    created_at     timestamptz not null default clock_timestamp(),
    settled_at     timestamptz
) with (fillfactor = 80);

create index reservation_due_idx on reservation (expires_at, reservation_id) where state = 'pending';

comment on column reservation.reason is 'Why it left pending without its owner: catalogue-replaced, or null.';

create table reservation_line (
    reservation_id bigint not null references reservation on delete cascade,
    line           smallint not null,
    sku_id         bigint not null,
    quantity       integer not null check (quantity > 0),
    primary key (reservation_id, line)
);
"""

# The swap of an import calls this: the new stock rows begin with nothing reserved.
FUNCTIONS = """
create function release_replaced_reservations() returns bigint
    language sql
    begin atomic
        with settled as (
            update atelier.reservation
               set state = 'released', reason = 'catalogue-replaced', settled_at = clock_timestamp()
             where state = 'pending'
            returning 1
        )
        select count(*) from settled;
    end;

comment on function release_replaced_reservations() is
    'Settles every pending reservation for an import; call it in the swap, once the stock table is locked.';
"""

GRANTS = """
grant select on reservation, reservation_line to reader;

grant select, insert, update, delete on reservation, reservation_line to writer;

grant usage on sequence reservation_id_seq to writer;
"""


def upgrade() -> None:
    """Makes the tables and the function for imports."""
    run(TABLES)
    run(FUNCTIONS)
    run(GRANTS)


def downgrade() -> None:
    """Forgets all reservations."""
    op.execute("drop function release_replaced_reservations")
    op.execute("drop table reservation_line, reservation")
    op.execute("drop sequence reservation_id_seq")


def run(script: str) -> None:
    """Executes the statements of a script, which blank lines separate."""
    for statement in script.strip().split("\n\n"):
        op.execute(statement)
