-- The ids of related products, in their stored order; both dialects have the same form.

-- name: related
select asked.id, document.body, position.*
from {position}
cross join unnest($1::bigint[]) as asked (id)
left join lateral (
    select (select coalesce(json_agg(related.related_product_id order by related.position), '[]')
            from related where related.product_id = product.id) as body
    from product
    where product.id = asked.id
) as document on true;
