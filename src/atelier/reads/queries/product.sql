-- One product with its features.

-- name: product_documented
select asked.id, document.version, document.body, position.*
from {position}
cross join unnest($1::bigint[]) as asked (id)
left join lateral (
    select product.version, row_to_json(fields) as body
    from product
    cross join lateral (
        select product.id, product.name, product.slogan, product.description, product.category,
               short_price(product.default_price) as default_price,
               (select coalesce(json_agg(json_build_object('feature', feature.feature, 'value', feature.value)
                                         order by feature.id), '[]')
                from feature where feature.product_id = product.id) as features
    ) as fields
    where product.id = asked.id
) as document on true;

-- name: product_live
select asked.id, document.version, document.body, position.*
from {position}
cross join unnest($1::bigint[]) as asked (id)
left join lateral (
    select product.version, row_to_json(fields) as body
    from product
    cross join lateral (
        select product.id, $2::text as campus, product.name, product.slogan, product.description, product.category,
               product.default_price::text as default_price,
               utc_milliseconds(product.created_at) as created_at, utc_milliseconds(product.updated_at) as updated_at,
               (select coalesce(json_agg(json_build_object('feature', feature.feature, 'value', feature.value)
                                         order by feature.id), '[]')
                from feature where feature.product_id = product.id) as features
    ) as fields
    where product.id = asked.id
) as document on true;
