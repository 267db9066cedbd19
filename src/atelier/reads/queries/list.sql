-- Products in id order. By number: $1 is how many products lie before the page. By cursor: $1 is the id before it.
-- $2 is how many to give, $3 the campus of the live dialect.
--
-- A page by number is found by counts, not by leaving out rows one by one: the running sum of the spans leads to a
-- span of 64 blocks, that of its blocks to the blocks of 512 ids that the page lies in, and at most 511 rows of the
-- first one are left out. Blocks without a product are not looked into: a standby passes over what lies dead in them
-- row by row until the next vacuum. Counts and rows come from one snapshot, so a page is exact whatever is being
-- inserted or deleted beside it.

-- fragment: counted
with change as materialized (
    select block, sum(products) as products from product_change group by block
),
span as materialized (
    select span, sum(products) as products, sum(sum(products)) over (order by span) as through
    from (select span, products from product_span union all select block >> 6, products from change) as known
    group by span
)

-- fragment: located
{position}
cross join unnest($1::bigint[]) as asked (id)
cross join (select coalesce(max(through), 0)::bigint as products from span) as total
cross join lateral (
    select array_agg(found.block order by found.block) as blocks, (asked.id - min(found.before))::bigint as skip
    from (
        select counted.block, counted.products, span.through - span.products + counted.through as through,
               span.through - span.products + counted.through - counted.products as before
        from span cross join lateral (
            select block, sum(products) as products, sum(sum(products)) over (order by block) as through
            from (select block, products from product_block
                  where block >= span.span << 6 and block < (span.span + 1) << 6
                  union all select block, products from change where block >> 6 = span.span) as known
            group by block) as counted
        where span.through > asked.id and span.through - span.products - asked.id < $2::bigint
    ) as found
    where found.products > 0 and found.through > asked.id and found.before - asked.id < $2::bigint
) as needed

-- fragment: documented_item
id, name, slogan, description, category, short_price(default_price) as default_price

-- fragment: live_item
id, $3::text as campus, name, slogan, description, category, default_price::text as default_price,
utc_milliseconds(created_at) as created_at, utc_milliseconds(updated_at) as updated_at

-- fragment: rows
product where id >= block.number << 9 and id < (block.number + 1) << 9
order by id offset case block.turn when 1 then needed.skip else 0 end limit $2::bigint

-- fragment: more
(select id from product where id > page.last_id order by id limit 1) is not null

-- name: list_documented
{counted}
select asked.id, total.products as total, page.body, position.*
from {located}
cross join lateral (
    select coalesce(json_agg(fields order by fields.id), '[]') as body
    from (select found.*
          from unnest(needed.blocks) with ordinality as block (number, turn)
          cross join lateral (select {documented_item} from {rows}) as found
          order by found.id limit $2::bigint) as fields
) as page;

-- name: list_live
{counted}
select asked.id, total.products as total, page.body, position.*
from {located}
cross join lateral (
    select coalesce(json_agg(fields order by fields.id), '[]') as body
    from (select found.*
          from unnest(needed.blocks) with ordinality as block (number, turn)
          cross join lateral (select {live_item} from {rows}) as found
          order by found.id limit $2::bigint) as fields
) as page;

-- name: after_documented
select asked.id, page.last_id, {more} as has_more, page.body, position.*
from {position}
cross join unnest($1::bigint[]) as asked (id)
cross join lateral (
    select coalesce(json_agg(fields order by fields.id), '[]') as body, max(fields.id) as last_id
    from (select {documented_item} from product where id > asked.id order by id limit $2::bigint) as fields
) as page;

-- name: after_live
select asked.id, page.last_id, {more} as has_more, page.body, position.*
from {position}
cross join unnest($1::bigint[]) as asked (id)
cross join lateral (
    select coalesce(json_agg(fields order by fields.id), '[]') as body, max(fields.id) as last_id
    from (select {live_item} from product where id > asked.id order by id limit $2::bigint) as fields
) as page;
