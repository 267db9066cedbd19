-- All styles of one product, and one style alone. The quantity is what a shopper can still buy.

-- fragment: photos
(select coalesce(json_agg(json_build_object('thumbnail_url', photo.thumbnail_url, 'url', photo.url) order by photo.id),
                 '[{"thumbnail_url":null,"url":null}]')
 from photo where photo.style_id = style.id) as photos

-- fragment: stock
(select json_object_agg(sku.id, json_build_object('quantity', stock.on_hand - stock.reserved, 'size', sku.size)
                        order by sku.id)
 from sku join stock on stock.sku_id = sku.id where sku.style_id = style.id)

-- fragment: documented_style
select style.id as style_id, style.name, short_price(style.original_price) as original_price,
       coalesce(short_price(style.sale_price), '0') as sale_price, style.is_default::integer as "default?",
       {photos}, coalesce({stock}, '{}') as skus

-- fragment: live_style
select style.id as style_id, style.name, style.original_price::text as original_price,
       style.sale_price::text as sale_price, style.is_default as "default?",
       {photos}, coalesce({stock}, '{"null":{"quantity":null,"size":null}}') as skus

-- name: styles_documented
select asked.id, document.body, position.*
from {position}
cross join unnest($1::bigint[]) as asked (id)
left join lateral (
    select json_build_object('product_id', product.id::text, 'results', (
        select coalesce(json_agg(fields order by style.id), '[]')
        from style cross join lateral ({documented_style}) as fields
        where style.product_id = product.id)) as body
    from product where product.id = asked.id
) as document on true;

-- name: styles_live
select asked.id, document.body, position.*
from {position}
cross join unnest($1::bigint[]) as asked (id)
left join lateral (
    select json_build_object('product_id', product.id::text, 'results', (
        select coalesce(json_agg(fields order by style.id), '[]')
        from style cross join lateral ({live_style}) as fields
        where style.product_id = product.id)) as body
    from product where product.id = asked.id
) as document on true;

-- name: style
select asked.id, document.version, document.body, position.*
from {position}
cross join unnest($1::bigint[]) as asked (id)
left join lateral (
    select product.version, row_to_json(fields) as body
    from style
    join product on product.id = style.product_id
    cross join lateral ({documented_style}) as fields
    where style.id = asked.id
) as document on true;
