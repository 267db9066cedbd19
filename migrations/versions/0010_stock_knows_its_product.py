"""Keeps with each stock row whose it is, so that a change is announced without a look at SKU and style.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

from atelier.migrate import run_script

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Two more pages for every row, under the order lock: with rows all over a large catalogue they were a fifth of a
# command, and half of what had to stay in memory. An import does not fill the column; the first change of a row does.
# Parents are locked before children, as everybody locks them.
OWNER = """
lock table style, sku in share row exclusive mode;
alter table stock add column product_id bigint;
comment on column stock.product_id is
    'Whose stock it is, for who announces changes; null from an import until the row is changed. Kept by triggers.';

create function find_product_of_stock() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    select style.product_id into new.product_id
      from atelier.sku join atelier.style on style.id = sku.style_id where sku.id = new.sku_id;
    return new;
end $$;

create function find_product_of_moved_stock() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update atelier.stock set product_id = null
      from atelier.sku where stock.sku_id = sku.id
       and case tg_table_name when 'sku' then sku.id = new.id else sku.style_id = new.id end;
    return null;
end $$;

comment on function find_product_of_moved_stock() is
    'A SKU has gone to another style, or a style to another product: its stock is told, and so announced, too.';
"""

ANNOUNCE = """
create or replace function announce_touched_stock() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    delete from atelier.stock_touched where id = new.id;
    insert into atelier.outbox (position, topic, kind, product_id, sku_id, available, version)
    select atelier.draw_outbox_position(), 'stock', 'updated', {product},
           stock.sku_id, stock.on_hand - stock.reserved, stock.version
      from unnest(new.sku_ids, new.versions) with ordinality as touched (sku_id, version, place)
      join atelier.stock on stock.sku_id = touched.sku_id and stock.version = touched.version
      {joins}
     order by touched.place;
    return null;
end $$;
"""
# The same as before, but that `product_id` has to be told from the new column.
LOST = """
create or replace function announce_lost_stock() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    touched bigint[];
begin
    select array_agg(distinct style.product_id) into touched
      from gone join atelier.sku on sku.id = gone.sku_id join atelier.style on style.id = sku.style_id;
    if touched is not null then
        perform atelier.raise_product_versions(touched);
    end if;
    return null;
end $$;
"""
JOINS = "join atelier.sku on sku.id = stock.sku_id join atelier.style on style.id = sku.style_id"

TRIGGERS = """
create trigger style_moved after update of product_id on style
    for each row when (old.product_id <> new.product_id) execute function find_product_of_moved_stock();
create trigger sku_moved after update of style_id on sku
    for each row when (old.style_id <> new.style_id) execute function find_product_of_moved_stock();
create trigger stock_owned before insert on stock
    for each row execute function find_product_of_stock();
create trigger stock_owner_kept before update on stock
    for each row when (new.product_id is null or new.sku_id <> old.sku_id
          or new.product_id is distinct from old.product_id)
    execute function find_product_of_stock();
revoke execute on function find_product_of_stock, find_product_of_moved_stock from public;
"""


def upgrade() -> None:
    """Adds the column, empty, and those who keep it."""
    for script in (OWNER, TRIGGERS, LOST, ANNOUNCE.format(product="stock.product_id", joins="")):
        run_script(op.get_bind(), script)


def downgrade() -> None:
    """Looks the product up again for every change."""
    run_script(op.get_bind(), ANNOUNCE.format(product="style.product_id", joins=JOINS))
    run_script(
        op.get_bind(),
        """
        drop trigger style_moved on style;
        drop trigger sku_moved on sku;
        drop trigger stock_owned on stock;
        drop trigger stock_owner_kept on stock;
        drop function find_product_of_stock, find_product_of_moved_stock;
        alter table stock drop column product_id;
        """,
    )
