"""The catalogue, its stock and the ledger behind it, command keys and API keys.

Plain SQL on purpose: partitions, storage parameters and grants have no portable form, and a migration is read far
more often than it is written.

Revision ID: 0001
Revises: nothing
"""

from alembic import op

from atelier.migrate import run_script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Ids come from free-standing sequences, not identity columns: an import builds side tables and swaps them in, and a
# sequence that belongs to no table is shared by both and never goes back.
SEQUENCES = ("product_id", "feature_id", "style_id", "photo_id", "sku_id", "movement_id", "catalogue_id")

CATALOGUE = """
create table catalogue (
    catalogue_id bigint primary key default nextval('catalogue_id_seq'),
    origin       text not null,
    loaded_at    timestamptz not null default clock_timestamp()
);
comment on table catalogue is 'Every catalogue that was ever the present one; movements belong to one of them.';

create table current_catalogue (
    singleton     boolean primary key default true check (singleton),
    catalogue_id  bigint not null unique references catalogue,
    version_floor bigint not null default 0
);
comment on column current_catalogue.version_floor is
    'No product or stock version at or below this may be given out again, for any id.';

create table product (
    id            bigint primary key default nextval('product_id_seq') check (id > 0),
    name          text not null,
    slogan        text not null,
    description   text not null,
    category      text not null,
    default_price numeric(11, 2) not null check (default_price >= 0),
    version       bigint not null default 1,
    created_at    timestamptz not null default clock_timestamp(),
    updated_at    timestamptz not null default clock_timestamp()
);

create table feature (
    id         bigint primary key default nextval('feature_id_seq') check (id > 0),
    product_id bigint not null references product on delete cascade,
    feature    text not null,
    value      text
);
create index feature_product_id_idx on feature (product_id, id);

create table style (
    id             bigint primary key default nextval('style_id_seq') check (id > 0),
    product_id     bigint not null references product on delete cascade,
    name           text not null,
    original_price numeric(11, 2) not null check (original_price >= 0),
    sale_price     numeric(11, 2) check (sale_price >= 0),
    is_default     boolean not null
);
create index style_product_id_idx on style (product_id, id);

create table photo (
    id            bigint primary key default nextval('photo_id_seq') check (id > 0),
    style_id      bigint not null references style on delete cascade,
    url           text,
    thumbnail_url text
);
create index photo_style_id_idx on photo (style_id, id);

create table sku (
    id       bigint primary key default nextval('sku_id_seq') check (id > 0),
    style_id bigint not null references style on delete cascade,
    size     text
);
create index sku_style_id_idx on sku (style_id, id);

create table related (
    product_id         bigint not null references product on delete cascade,
    position           integer not null check (position > 0),
    related_product_id bigint not null references product on delete cascade,
    primary key (product_id, position)
);
create index related_related_product_id_idx on related (related_product_id);
comment on column related.position is 'The stored order, from 1; duplicates and self-references are kept.';
"""

# fillfactor: a stock row changes with every sale and never in an indexed column, so room on its own page makes every
# such update a HOT one: https://www.postgresql.org/docs/18/storage-hot.html
INVENTORY = """
create table stock (
    sku_id   bigint primary key references sku on delete cascade,
    on_hand  integer not null,
    reserved integer not null default 0,
    version  bigint not null default 1,
    constraint stock_reserved_not_negative check (reserved >= 0),
    constraint stock_never_oversold check (reserved <= on_hand)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

create table stock_movement (
    movement_id  bigint not null default nextval('movement_id_seq'),
    catalogue_id bigint not null,
    sku_id       bigint not null,
    delta        integer not null,
    kind         text not null check (kind in ('import', 'initial', 'adjustment', 'count', 'sale', 'removed')),
    reason       text,
    command_key  text,
    at           timestamptz not null default clock_timestamp(),
    primary key (catalogue_id, sku_id, movement_id)
) partition by list (catalogue_id);
comment on table stock_movement is
    'Append-only ledger: on_hand is the sum of a SKU''s deltas in the present catalogue. No foreign key to stock: '
    'movements outlive their SKU. One partition a catalogue, so that an import attaches its own when it is complete.';
"""

# No foreign key on purpose: the key row is written on the hottest path, and its owner's key may be pruned before it.
ACCESS = """
create table command_key (
    owner       text not null,
    key         text not null,
    fingerprint bytea not null,
    status      smallint not null,
    headers     jsonb not null,
    body        bytea,
    created_at  timestamptz not null default clock_timestamp(),
    primary key (owner, key)
);
create index command_key_created_at_idx on command_key (created_at);
comment on table command_key is 'What a command key did, committed in the same transaction as its effect.';

create table api_key (
    key_id       bigint primary key generated always as identity,
    name         text not null,
    prefix       text not null unique,
    digest       bytea not null,
    scopes       text[] not null,
    created_at   timestamptz not null default clock_timestamp(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
);
comment on column api_key.digest is 'SHA-256 of the whole key; the key itself is shown once and stored nowhere.';
"""

# Prices leave the database as text: '140' and '19.50' in the documented dialect, '140.00' in the live one.
FUNCTIONS = """
create function short_price(price numeric(11, 2)) returns text
    language sql immutable parallel safe
    return case when price = trunc(price) then trunc(price)::text else price::text end;

create function utc_milliseconds(at timestamptz) returns text
    language sql stable parallel safe
    return to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');
"""

FIRST_CATALOGUE = """
with made as (insert into catalogue (origin) values ('empty') returning catalogue_id)
insert into current_catalogue (catalogue_id) select catalogue_id from made;
create table stock_movement_1 partition of stock_movement for values in (1);
"""

GRANTS = """
grant select on all tables in schema atelier to reader, writer;
grant insert, update, delete on
    product, feature, style, photo, sku, related, stock, command_key to writer;
grant insert on stock_movement to writer;
grant insert, update on api_key to writer;
revoke select on api_key from reader;
grant select (key_id, name, prefix, digest, scopes, created_at, expires_at, revoked_at) on api_key to reader;
grant usage on all sequences in schema atelier to writer;
grant execute on function short_price, utc_milliseconds to reader, writer;
"""


def upgrade() -> None:
    """Makes the tables, empty, with the first (empty) catalogue."""
    for name in SEQUENCES:
        op.execute(f"create sequence {name}_seq")
    for script in (CATALOGUE, INVENTORY, ACCESS, FUNCTIONS, FIRST_CATALOGUE, GRANTS):
        run_script(op.get_bind(), script)


def downgrade() -> None:
    """There is nothing before the first migration but an empty schema."""
    run_script(
        op.get_bind(),
        """
        drop table api_key, command_key, stock_movement, stock, related, sku, photo, style, feature, product,
                   current_catalogue, catalogue;
        drop function short_price, utc_milliseconds;
        """,
    )
    for name in SEQUENCES:
        op.execute(f"drop sequence {name}_seq")
