"""A small random catalogue in clean CSV form: everything that the form allows, at random, from a seed."""

from pathlib import Path
from random import Random

HEADERS = {
    "product": "id,name,slogan,description,category,default_price",
    "features": "id,product_id,feature,value",
    "styles": "id,productId,name,sale_price,original_price,default_style",
    "photos": "id,styleId,url,thumbnail_url",
    "skus": "id,styleId,size,quantity",
    "related": "id,current_product_id,related_product_id",
}
_WORDS = (
    "plain",
    "null",
    'say "hi"',
    "a,b",
    "C:\\dir\\",
    "ünï",
    "東京",
    "🧥",
    "'",
    "%s",
    "{}",
    "tab\there",
    "NULL",
    "0",
    "$1",
    "",
)
_SIZES = ("XS", "S", "M", "M", "L", "XL", "7.5", "One Size", "null")


def write_random_catalogue(folder: Path, *, seed: int, products: int = 30) -> Path:
    """Writes the six files into `folder` (made when missing) and returns it. The same seed gives the same bytes."""
    random = Random(seed)
    rows: dict[str, list[str]] = {name: [] for name in HEADERS}
    ids = _ids(random, products)
    for product_id in ids:
        _add_product(rows, random, product_id, ids)
    folder.mkdir(parents=True, exist_ok=True)
    for name, header in HEADERS.items():
        (folder / f"{name}.csv").write_text("\n".join([header, *rows[name]]) + "\n", encoding="utf-8", newline="")
    return folder


def _ids(random: Random, count: int) -> list[int]:
    return sorted(random.sample(range(1, 4 * count + 2), count))


def _add_product(rows: dict[str, list[str]], random: Random, product_id: int, ids: list[int]) -> None:
    texts = [_quote(f"Product {product_id} {_text(random)}"), *(_quote(_text(random)) for _ in range(3))]
    rows["product"].append(",".join([str(product_id), *texts, _price(random)]))
    for _ in range(random.randrange(4)):
        _add(rows, "features", product_id, _quote(_text(random)), _maybe(random, _quote(_text(random))))
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        _add_style(rows, random, product_id)
    for _ in range(random.choice((0, 1, 4, 6))):
        _add(rows, "related", product_id, random.choice([*ids[:3], product_id, random.choice(ids)]))


def _add_style(rows: dict[str, list[str]], random: Random, product_id: int) -> None:
    sale, default = _maybe(random, _price(random)), random.choice("01")
    style_id = _add(rows, "styles", product_id, _quote(_text(random)), sale, _price(random), default)
    for number in range(random.choice((0, 1, 3))):
        url = _quote(f"https://images.example.com/{style_id}/{number}?w=9&q={_text(random)}")
        _add(rows, "photos", style_id, _maybe(random, url), _maybe(random, url))
    for _ in range(random.choice((0, 1, 6))):
        size = _maybe(random, _quote(random.choice(_SIZES)))
        _add(rows, "skus", style_id, size, random.choice((0, 1, 17, 2**31 - 1)))


def _add(rows: dict[str, list[str]], name: str, *values: object) -> int:
    row_id = 3 * len(rows[name]) + 1
    rows[name].append(",".join([str(row_id), *map(str, values)]))
    return row_id


def _text(random: Random) -> str:
    return " ".join(random.choice(_WORDS) for _ in range(random.randrange(4)))


def _quote(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _maybe(random: Random, value: str) -> str:
    return value if random.random() < 0.8 else "null"


def _price(random: Random) -> str:
    return random.choice(("0", "140", "19.50", "19.5", "0.01", "999999999.99", str(random.randrange(500))))
