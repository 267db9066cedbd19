"""Claims the keys of a batch in one round trip.

Revision ID: 0009
Revises: 0008
"""

from alembic import op

from atelier.migrate import run_script

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Two statements, and the function is volatile, so that the second has a snapshot of its own, newer than the locks: what
# it does not find, nobody has committed or can commit under these keys before this transaction ends.
# https://www.postgresql.org/docs/18/xfunc-volatility.html
CLAIM = """
create function claim_command_keys(owners text[], keys text[], locks bigint[])
    returns table (held boolean, fingerprint bytea, status smallint, headers text, body bytea)
    language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    ours boolean[];
begin
    ours := array(select pg_try_advisory_xact_lock(lock)
                    from unnest(locks) with ordinality as wanted (lock, place) order by place);
    return query
        select wanted.held, stored.fingerprint, stored.status, stored.headers::text, stored.body
          from unnest(owners, keys, ours) with ordinality as wanted (owner, key, held, place)
          left join atelier.command_key as stored on stored.owner = wanted.owner and stored.key = wanted.key
         order by wanted.place;
end $$;

comment on function claim_command_keys(text[], text[], bigint[]) is
    'Tries the lock of each key, then says in their order who has it and what is stored under it (null: nothing).';

revoke execute on function claim_command_keys from public;
grant execute on function claim_command_keys to writer;
"""


def upgrade() -> None:
    """Makes the function."""
    run_script(op.get_bind(), CLAIM)


def downgrade() -> None:
    """Takes it away."""
    op.execute("drop function claim_command_keys")
