"""Announces all the stock that a transaction has changed at once, not row by row.

Revision ID: 0008
Revises: 0007
"""

from alembic import op

from atelier.migrate import run_script

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# What runs inside COMMIT runs under the order lock, one transaction behind the other, and a trigger for each row asked
# there for its product by itself. So a statement leaves a note of all that it has touched, and the note is announced:
# still deferred, still whoever writes, still the last of several changes of a row (the others' versions are gone).
# Unlogged: a note never outlives its transaction, neither on disk nor on a standby.
NOTES = """
create sequence stock_touched_id_seq cache 32;

create unlogged table stock_touched (
    id       bigint primary key default nextval('stock_touched_id_seq'),
    sku_ids  bigint[] not null,
    versions bigint[] not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
comment on table stock_touched is
    'What the statements of running transactions have changed in stock; COMMIT announces it and takes the note away.';

create function note_touched_stock() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    insert into atelier.stock_touched (sku_ids, versions)
    select array_agg(sku_id), array_agg(version) from come having count(*) > 0;
    return null;
end $$;

create function announce_touched_stock() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    delete from atelier.stock_touched where id = new.id;
    insert into atelier.outbox (position, topic, kind, product_id, sku_id, available, version)
    select atelier.draw_outbox_position(), 'stock', 'updated', style.product_id,
           stock.sku_id, stock.on_hand - stock.reserved, stock.version
      from unnest(new.sku_ids, new.versions) with ordinality as touched (sku_id, version, place)
      join atelier.stock on stock.sku_id = touched.sku_id and stock.version = touched.version
      join atelier.sku on sku.id = stock.sku_id
      join atelier.style on style.id = sku.style_id
     order by touched.place;
    return null;
end $$;
"""

TRIGGERS = """
drop trigger stock_announced on stock;
drop function announce_stock;
create trigger stock_put_in after insert on stock
    referencing new table as come for each statement execute function note_touched_stock();
create trigger stock_changed after update on stock
    referencing new table as come for each statement execute function note_touched_stock();
create constraint trigger touched_stock_announced after insert on stock_touched
    deferrable initially deferred for each row execute function announce_touched_stock();
revoke execute on function note_touched_stock, announce_touched_stock from public;
revoke all on stock_touched from reader, writer;
"""

ROW_BY_ROW = """
create function announce_stock() returns trigger language plpgsql as $$
declare
    owner_id bigint;
begin
    select style.product_id into owner_id
      from atelier.stock
      join atelier.sku on sku.id = stock.sku_id
      join atelier.style on style.id = sku.style_id
     where stock.sku_id = new.sku_id and stock.version = new.version;
    if not found then return null; end if;
    insert into atelier.outbox (position, topic, kind, product_id, sku_id, available, version)
    values (atelier.draw_outbox_position(), 'stock', 'updated', owner_id,
            new.sku_id, new.on_hand - new.reserved, new.version);
    return null;
end $$;
create constraint trigger stock_announced after insert or update on stock
    deferrable initially deferred for each row execute function announce_stock();
"""


def upgrade() -> None:
    """Puts two triggers a statement and one a note in the place of one a row."""
    run_script(op.get_bind(), NOTES)
    run_script(op.get_bind(), TRIGGERS)


def downgrade() -> None:
    """Announces stock row by row again."""
    run_script(
        op.get_bind(),
        """
        drop trigger stock_put_in on stock;
        drop trigger stock_changed on stock;
        drop table stock_touched;
        drop sequence stock_touched_id_seq;
        drop function note_touched_stock, announce_touched_stock;
        """,
    )
    run_script(op.get_bind(), ROW_BY_ROW)
