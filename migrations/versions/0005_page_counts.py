"""Counts of products by blocks of ids: what makes a page exact, and equally quick, at any depth.

Revision ID: 0005
Revises: 0004
"""

from alembic import op

from atelier.migrate import run_script

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# A block is 512 ids, a span is 64 blocks. What a statement adds or takes away is appended to `product_change`, so that
# concurrent inserts never meet in one row; now and then one of them folds the changes into the counts. A count is
# always: the counts plus all changes that the same snapshot shows.
# Autovacuum looks at the changes on every round: they are read by every page, dead ones too.
TABLES = """
create sequence product_change_id_seq;

create table product_change (
    change_id bigint not null default nextval('product_change_id_seq'),
    block     bigint not null,
    products  integer not null
) with (autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0);

create table product_block (
    block    bigint primary key,
    products bigint not null
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0.1);

create table product_span (
    span     bigint primary key,
    products bigint not null
) with (fillfactor = 50, autovacuum_vacuum_threshold = 50, autovacuum_vacuum_scale_factor = 0.1);

comment on table product_block is
    'How many products have an id of block * 512 to block * 512 + 511, but for what product_change adds.';
comment on table product_span is 'The same for 64 blocks together.';
"""

# They run as the owner, so that no role can change the counts but by changing products.
FUNCTIONS = """
create function count_products() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    is_turn boolean;
begin
    with written as (
        insert into atelier.product_change (block, products)
        select id >> 9, case tg_op when 'INSERT' then count(*) else -count(*) end from moved group by id >> 9
        returning change_id
    )
    select bool_or(change_id % 256 = 0) into is_turn from written;
    if is_turn then
        perform atelier.fold_product_changes();
    end if;
    return null;
end $$;

create function fold_product_changes() returns bigint
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    folded bigint;
begin
    -- The snapshot of a longer isolation may be older than the last fold. Whoever finds the lock taken leaves the
    -- work to its holder: nobody ever waits here.
    if current_setting('transaction_isolation') <> 'read committed' or not pg_try_advisory_xact_lock(6386796, 3) then
        return 0;
    end if;
    with gone as (
        delete from atelier.product_change returning block, products
    ), blocks as (
        insert into atelier.product_block as kept select block, sum(products) from gone group by block order by block
        on conflict (block) do update set products = kept.products + excluded.products
    ), spans as (
        insert into atelier.product_span as kept select block >> 6, sum(products) from gone group by 1 order by 1
        on conflict (span) do update set products = kept.products + excluded.products
    )
    select count(*) into folded from gone;
    return folded;
end $$;

comment on function fold_product_changes() is
    'Folds the changes into the counts unless another transaction is at it. Gives how many it folded.';

create function rebuild_page_counts() returns bigint
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    counted bigint;
begin
    lock table atelier.product in share mode;
    perform pg_advisory_xact_lock(6386796, 3);
    delete from atelier.product_change;
    delete from atelier.product_block;
    delete from atelier.product_span;
    insert into atelier.product_block select id >> 9, count(*) from atelier.product group by 1;
    insert into atelier.product_span select block >> 6, sum(products) from atelier.product_block group by 1;
    select coalesce(sum(products), 0) into counted from atelier.product_span;
    return counted;
end $$;

comment on function rebuild_page_counts() is
    'Counts all products anew, for a swap that puts another table in the place of product. Gives how many there are.';

create function forget_page_counts() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform atelier.rebuild_page_counts();
    return null;
end $$;

create function refuse_new_product_id() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'the id of a product never changes' using errcode = 'integrity_constraint_violation';
end $$;
"""

TRIGGERS = """
create trigger product_counted_in after insert on product
    referencing new table as moved for each statement execute function count_products();
create trigger product_counted_out after delete on product
    referencing old table as moved for each statement execute function count_products();
create trigger product_counts_forgotten after truncate on product
    for each statement execute function forget_page_counts();
create trigger product_id_kept before update of id on product
    for each row when (old.id is distinct from new.id) execute function refuse_new_product_id();
"""

GRANTS = """
grant select on product_change, product_block, product_span to reader, writer;
grant execute on function fold_product_changes() to writer;
revoke execute on function count_products, rebuild_page_counts, forget_page_counts, refuse_new_product_id from public;
"""


def upgrade() -> None:
    """Makes the counts, fills them, and the triggers that keep them."""
    for script in (TABLES, FUNCTIONS, TRIGGERS, GRANTS):
        run_script(op.get_bind(), script)
    op.execute("select rebuild_page_counts()")


def downgrade() -> None:
    """Forgets the counts."""
    run_script(
        op.get_bind(),
        """
        drop trigger product_counted_in on product;
        drop trigger product_counted_out on product;
        drop trigger product_counts_forgotten on product;
        drop trigger product_id_kept on product;
        drop function count_products, forget_page_counts, refuse_new_product_id, rebuild_page_counts,
                      fold_product_changes;
        drop table product_change, product_block, product_span;
        drop sequence product_change_id_seq;
        """,
    )
