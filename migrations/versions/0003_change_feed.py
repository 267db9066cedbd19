"""The outbox behind the change feed, and versions that never repeat.

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLES = """
create sequence outbox_position_seq;

create table outbox (
    position   bigint primary key default nextval('outbox_position_seq'),
    topic      text not null check (topic in ('product', 'stock', 'catalogue')),
    kind       text not null,
    product_id bigint,
    sku_id     bigint,
    available  integer,
    version    bigint,
    at         timestamptz not null default clock_timestamp()
) with (autovacuum_vacuum_scale_factor = 0.05);

create index outbox_at_idx on outbox (at);

create table outbox_floor (
    singleton boolean primary key default true check (singleton),
    position  bigint not null default 0
);

comment on column outbox_floor.position is
    'The highest position that was pruned: who has seen less has missed something for good.';

insert into outbox_floor default values;

comment on table outbox is
    'One row per committed change, by position in commit order: every position is drawn under one advisory lock that '
    'its transaction holds until it has committed.';
"""

# Deferred row triggers run inside COMMIT, after everything else the transaction did, so the order lock is the last
# lock of every transaction whoever writes it, is held for the length of the commit alone, and nothing bypasses it.
# They look the row up again: of several changes in one transaction only the last one is announced.
FUNCTIONS = """
create function draw_outbox_position() returns bigint language plpgsql as $$
begin
    perform pg_advisory_xact_lock(6386796, 2);
    return nextval('atelier.outbox_position_seq');
end $$;

create function announce_product() returns trigger language plpgsql as $$
declare
    present bigint;
begin
    select version into present from atelier.product where id = coalesce(new.id, old.id);
    if tg_op = 'DELETE' then
        if present is not null then return null; end if;
    elsif present is distinct from new.version then
        return null;
    end if;
    insert into atelier.outbox (position, topic, kind, product_id, version)
    values (atelier.draw_outbox_position(), 'product',
            case tg_op when 'INSERT' then 'created' when 'UPDATE' then 'updated' else 'deleted' end,
            coalesce(new.id, old.id), coalesce(new.version, old.version + 1));
    return null;
end $$;

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

create function announce_catalogue() returns bigint language plpgsql as $$
declare
    drawn bigint := atelier.draw_outbox_position();
begin
    insert into atelier.outbox (position, topic, kind) values (drawn, 'catalogue', 'replaced');
    return drawn;
end $$;

comment on function announce_catalogue() is
    'Announces a whole import as one change; the last statement of the swap, because it takes the order lock.';

create function keep_version_floor() returns trigger language plpgsql as $$
declare
    highest bigint;
begin
    select max(version) into highest from gone;
    update atelier.current_catalogue set version_floor = highest + 1 where version_floor <= highest;
    return null;
end $$;

comment on function keep_version_floor() is
    'An id that was deleted may come back by an import: its versions must not.';
"""

TRIGGERS = """
create constraint trigger product_announced after insert or update or delete on product
    deferrable initially deferred for each row execute function announce_product();

create constraint trigger stock_announced after insert or update on stock
    deferrable initially deferred for each row execute function announce_stock();

create trigger product_version_floor after delete on product
    referencing old table as gone for each statement execute function keep_version_floor();

create trigger stock_version_floor after delete on stock
    referencing old table as gone for each statement execute function keep_version_floor();
"""

GRANTS = """
grant select on outbox, outbox_floor to reader;

grant select, update on outbox_floor to writer;

grant select, insert, delete on outbox to writer;

grant usage on sequence outbox_position_seq to writer;

grant execute on function draw_outbox_position() to writer;

grant update (version_floor) on current_catalogue to writer;
"""


def upgrade() -> None:
    """Makes the outbox and the triggers that fill it."""
    for part in (TABLES, FUNCTIONS, TRIGGERS, GRANTS):
        run(part)


def downgrade() -> None:
    """Forgets all changes that were announced."""
    op.execute("drop trigger product_announced on product")
    op.execute("drop trigger stock_announced on stock")
    op.execute("drop trigger product_version_floor on product")
    op.execute("drop trigger stock_version_floor on stock")
    op.execute("drop function announce_product, announce_stock, announce_catalogue, keep_version_floor")
    op.execute("drop table outbox, outbox_floor")
    op.execute("drop function draw_outbox_position")
    op.execute("drop sequence outbox_position_seq")


def run(script: str) -> None:
    """Executes the statements of a script, which blank lines separate."""
    for statement in script.strip().split("\n\n"):
        op.execute(statement)
