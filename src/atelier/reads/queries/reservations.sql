-- One reservation with its lines, in the order of the request.

-- name: reservation
select asked.id, document.body, position.*
from {position}
cross join unnest($1::bigint[]) as asked (id)
left join lateral (
    select row_to_json(fields) as body
    from reservation
    cross join lateral (
        select reservation.reservation_id, reservation.state, utc_milliseconds(reservation.expires_at) as expires_at,
               (select json_agg(json_build_object('sku_id', reservation_line.sku_id,
                                                  'quantity', reservation_line.quantity)
                                order by reservation_line.line)
                from reservation_line
                where reservation_line.reservation_id = reservation.reservation_id) as lines
    ) as fields
    where reservation.reservation_id = asked.id
) as document on true;
