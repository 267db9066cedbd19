-- One page of products in id order. $1 is how many to leave out, $2 how many to give.

-- name: list_documented
select page.body, position.*
from {position}
cross join lateral (
    select coalesce(json_agg(fields order by fields.id), '[]') as body
    from (
        select id, name, slogan, description, category, short_price(default_price) as default_price
        from product order by id offset $1::bigint limit $2::bigint
    ) as fields
) as page;

-- name: list_live
select page.body, position.*
from {position}
cross join lateral (
    select coalesce(json_agg(fields order by fields.id), '[]') as body
    from (
        select id, $3::text as campus, name, slogan, description, category, default_price::text as default_price,
               utc_milliseconds(created_at) as created_at, utc_milliseconds(updated_at) as updated_at
        from product order by id offset $1::bigint limit $2::bigint
    ) as fields
) as page;
