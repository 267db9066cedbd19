"""Announces what is written to the parts of a product, whoever writes it.

Revision ID: 0006
Revises: 0005
"""

from alembic import op

from atelier.migrate import run_script

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Whoever changes a part of a product raises the product's version, and the product announces itself, as before, inside
# COMMIT: one event for a transaction, and an entity tag that is another one. Commands raise the version themselves,
# before they touch the parts; a row that this transaction has written carries its xid, and is left alone here.
# By statement, not by row, and not deferred: rows of products are locked before COMMIT, where the order lock is taken.
# They run as the owner, so that who may write a part alone may write it.
FUNCTIONS = """
create function raise_product_versions(ids bigint[]) returns void
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update atelier.product set version = product.version + 1, updated_at = clock_timestamp()
      from (select id from atelier.product where id = any(ids) and xmin <> pg_current_xact_id()::xid
             order by id for no key update) as touched
     where product.id = touched.id;
end $$;

comment on function raise_product_versions(bigint[]) is
    'Gives products new versions, and so announces them, but for those that this transaction has written already.';

create function raise_own_version() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    new.version := old.version + 1;
    return new;
end $$;

comment on function raise_own_version() is
    'The version of a product is its entity tag: a change of its row that forgets it would be taken for none.';

create function announce_parts_of_product() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    touched bigint[];
begin
    if tg_op <> 'INSERT' then
        select array_agg(distinct product_id) into touched from gone;
    end if;
    if tg_op <> 'DELETE' then
        select array_cat(touched, array_agg(distinct product_id)) into touched from come;
    end if;
    if touched is not null then
        perform atelier.raise_product_versions(touched);
    end if;
    return null;
end $$;

create function announce_parts_of_style() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    touched bigint[];
begin
    if tg_op <> 'INSERT' then
        select array_agg(distinct product_id) into touched from gone join atelier.style on style.id = gone.style_id;
    end if;
    if tg_op <> 'DELETE' then
        select array_cat(touched, array_agg(distinct product_id)) into touched
          from come join atelier.style on style.id = come.style_id;
    end if;
    if touched is not null then
        perform atelier.raise_product_versions(touched);
    end if;
    return null;
end $$;

create function announce_lost_stock() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    touched bigint[];
begin
    select array_agg(distinct product_id) into touched
      from gone join atelier.sku on sku.id = gone.sku_id join atelier.style on style.id = sku.style_id;
    if touched is not null then
        perform atelier.raise_product_versions(touched);
    end if;
    return null;
end $$;

comment on function announce_lost_stock() is
    'Stock that goes with its SKU has no owner any more: then the SKU, the style or the product has been announced.';

create function announce_moved_stock() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform atelier.raise_product_versions(array(
        select style.product_id from atelier.sku join atelier.style on style.id = sku.style_id
         where sku.id = old.sku_id));
    return null;
end $$;
"""

# TRUNCATE has no rows to tell of. It leaves its mark in a table of one row, so that the order lock is taken by a
# deferred trigger, inside COMMIT, as for everything else; of several marks the last one announces the whole catalogue.
# The tag of a product is its version, so what is shown of features needs new ones; the other tags are hashes.
EMPTYING = """
create table catalogue_emptied (
    singleton boolean primary key default true check (singleton),
    times     bigint not null default 0
);
insert into catalogue_emptied default values;
comment on table catalogue_emptied is 'How often a table of the catalogue was emptied by TRUNCATE.';

create function mark_emptied() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_table_name = 'feature' then
        update atelier.product set version = version + 1, updated_at = clock_timestamp();
    end if;
    update atelier.catalogue_emptied set times = times + 1;
    return null;
end $$;

create function announce_emptied() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if (select times from atelier.catalogue_emptied) = new.times then
        perform atelier.announce_catalogue();
    end if;
    return null;
end $$;

create function keep_version_floor_of_all() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    highest bigint;
begin
    execute format('select max(version) from %s', tg_relid::regclass) into highest;
    update atelier.current_catalogue set version_floor = highest + 1 where version_floor <= highest;
    return null;
end $$;

create constraint trigger emptied_announced after update on catalogue_emptied
    deferrable initially deferred for each row execute function announce_emptied();
create trigger product_version_floor_of_all before truncate on product
    for each statement execute function keep_version_floor_of_all();
create trigger stock_version_floor_of_all before truncate on stock
    for each statement execute function keep_version_floor_of_all();
create trigger product_version_rises before update on product
    for each row when (old.version = new.version and old.* is distinct from new.*)
    execute function raise_own_version();
create trigger stock_lost after delete on stock
    referencing old table as gone for each statement execute function announce_lost_stock();
create trigger stock_moved after update of sku_id on stock
    for each row when (old.sku_id is distinct from new.sku_id) execute function announce_moved_stock();
"""

# A trigger with transition tables is for one kind of statement.
PART_TRIGGERS = """
create trigger {table}_put_in after insert on {table}
    referencing new table as come for each statement execute function announce_parts_of_{owner}();
create trigger {table}_changed after update on {table}
    referencing old table as gone new table as come for each statement execute function announce_parts_of_{owner}();
create trigger {table}_taken_out after delete on {table}
    referencing old table as gone for each statement execute function announce_parts_of_{owner}();
"""
EMPTIED_TRIGGER = """
create trigger {table}_emptied after truncate on {table} for each statement execute function mark_emptied();
"""
PARTS = {"feature": "product", "style": "product", "related": "product", "photo": "style", "sku": "style"}
TABLES = ("product", "feature", "style", "photo", "sku", "related", "stock")

GRANTS = """
grant select on catalogue_emptied to reader, writer;
revoke execute on function raise_product_versions, raise_own_version, announce_parts_of_product,
    announce_parts_of_style, announce_lost_stock, announce_moved_stock, mark_emptied, announce_emptied,
    keep_version_floor_of_all from public;
"""


def upgrade() -> None:
    """Makes the triggers; parents before children, as everybody locks them."""
    for script in (FUNCTIONS, EMPTYING):
        run_script(op.get_bind(), script)
    for table in TABLES:
        if table in PARTS:
            run_script(op.get_bind(), PART_TRIGGERS.format(table=table, owner=PARTS[table]))
        run_script(op.get_bind(), EMPTIED_TRIGGER.format(table=table))
    run_script(op.get_bind(), GRANTS)


def downgrade() -> None:
    """Lets what is written to parts by hand be silent again."""
    for table in TABLES:
        op.execute(f"drop trigger {table}_emptied on {table}")
        for event in ("put_in", "changed", "taken_out") if table in PARTS else ():
            op.execute(f"drop trigger {table}_{event} on {table}")
    run_script(
        op.get_bind(),
        """
        drop trigger product_version_floor_of_all on product;
        drop trigger stock_version_floor_of_all on stock;
        drop trigger product_version_rises on product;
        drop trigger stock_lost on stock;
        drop trigger stock_moved on stock;
        drop table catalogue_emptied;
        drop function announce_parts_of_product, announce_parts_of_style, announce_lost_stock, announce_moved_stock,
                      raise_product_versions, raise_own_version, mark_emptied, announce_emptied,
                      keep_version_floor_of_all;
        """,
    )
