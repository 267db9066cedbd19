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

-- name: movements
select asked.id, document.body, position.*
from {position}
cross join unnest($1::bigint[]) as asked (id)
left join lateral (
    select (select coalesce(json_agg(fields order by fields.movement_id), '[]')
            from (
                select stock_movement.movement_id, stock_movement.delta, stock_movement.kind, stock_movement.reason,
                       stock_movement.command_key, utc_milliseconds(stock_movement.at) as at
                from stock_movement
                where stock_movement.catalogue_id = current_catalogue.catalogue_id
                  and stock_movement.sku_id = asked.id
                  and stock_movement.movement_id > $2::bigint
                order by stock_movement.movement_id
                limit $3::integer
            ) as fields) as body
    from current_catalogue
    -- The ledger outlives its SKU.
    where exists (select 1 from stock where stock.sku_id = asked.id)
       or exists (select 1 from stock_movement
                  where stock_movement.catalogue_id = current_catalogue.catalogue_id
                    and stock_movement.sku_id = asked.id)
) as document on true;
