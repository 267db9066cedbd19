-- The stock of one SKU.

-- name: inventory
select asked.id, document.version, document.body, position.*
from {position}
cross join unnest($1::bigint[]) as asked (id)
left join lateral (
    select stock.version, row_to_json(fields) as body
    from stock
    cross join lateral (
        select stock.sku_id, stock.on_hand, stock.reserved, stock.on_hand - stock.reserved as available, stock.version
    ) as fields
    where stock.sku_id = asked.id
) as document on true;
