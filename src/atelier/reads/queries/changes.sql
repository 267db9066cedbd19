-- The outbox, behind a position: position order is commit order on every node.

-- name: changes
select change.*, position.*
from {position}
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
