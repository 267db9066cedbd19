-- The outbox, behind a position: position order is commit order on every node.

-- name: changes
select change.*, outbox_floor.position as floor, position.*
from {position}
cross join outbox_floor
left join lateral (
    select outbox.position as change_id, outbox.topic, outbox.kind, outbox.product_id, outbox.sku_id,
           outbox.available, outbox.version
    from outbox
    where outbox.position > $1
    order by outbox.position
    limit $2
) as change on true
order by change.change_id;

-- name: changes_head
select greatest(outbox_floor.position, (select max(outbox.position) from outbox)) as head,
       outbox_floor.position as floor, position.*
from {position}
cross join outbox_floor;

-- What has changed, not how: one row, also when nothing has.

-- name: changes_condensed
select change.*, outbox_floor.position as floor, position.*
from {position}
cross join outbox_floor
cross join lateral (
    select count(*) as changes, max(behind.position) as head,
           array_agg(behind.product_id) filter (where behind.topic = 'product') as changed,
           array_agg(behind.product_id) filter (where behind.topic = 'stock') as stocked,
           coalesce(bool_or(behind.topic = 'catalogue'), false) as replaced
    from (
        select position, topic, product_id from outbox
        where position > $1::bigint order by position limit $2::bigint
    ) as behind
) as change;
