"""Tells stock of its new product after the products are locked, so that nothing that is being added is missed.

Revision ID: 0011
Revises: 0010
"""

from alembic import op

from atelier.migrate import run_script

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# By row, the trigger ran before the statement's own ones had the lock of the products: a SKU that a command was adding
# to the style at that moment was not seen, and its stock told of the old product for good. By statement it runs after
# `style_changed` and `sku_changed`, triggers of one kind going by their names; and it locks stock in everybody's order.
BY_STATEMENT = """
lock table style, sku in share row exclusive mode;
drop trigger style_moved on style;
drop trigger sku_moved on sku;

create or replace function find_product_of_moved_stock() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    moved bigint[];
begin
    if tg_table_name = 'sku' then
        moved := array(select come.id from come join gone using (id) where come.style_id <> gone.style_id);
    else
        moved := array(select sku.id from come join gone using (id) join atelier.sku on sku.style_id = come.id
                        where come.product_id <> gone.product_id);
    end if;
    update atelier.stock set product_id = null
      from (select sku_id from atelier.stock where sku_id = any(moved) order by sku_id for no key update) as told
     where stock.sku_id = told.sku_id;
    return null;
end $$;

create trigger style_moved after update on style
    referencing old table as gone new table as come for each statement execute function find_product_of_moved_stock();
create trigger sku_moved after update on sku
    referencing old table as gone new table as come for each statement execute function find_product_of_moved_stock();
"""
BY_ROW = """
drop trigger style_moved on style;
drop trigger sku_moved on sku;

create or replace function find_product_of_moved_stock() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update atelier.stock set product_id = null
      from atelier.sku where stock.sku_id = sku.id
       and case tg_table_name when 'sku' then sku.id = new.id else sku.style_id = new.id end;
    return null;
end $$;

create trigger style_moved after update of product_id on style
    for each row when (old.product_id <> new.product_id) execute function find_product_of_moved_stock();
create trigger sku_moved after update of style_id on sku
    for each row when (old.style_id <> new.style_id) execute function find_product_of_moved_stock();
"""


def upgrade() -> None:
    """Puts one trigger a statement in the place of one a row."""
    run_script(op.get_bind(), BY_STATEMENT)


def downgrade() -> None:
    """Goes back to one a row."""
    run_script(op.get_bind(), BY_ROW)
