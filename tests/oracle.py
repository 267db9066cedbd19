"""The eight storefront reads, computed from the CSV rows alone.

Reads the six files with its own reader and forms the expected documents in plain Python, so that a fault in the
import, the schema or a query cannot hide behind the same fault here. Takes clean files only: quoted texts, bare
numbers, bare null.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

Dialect = Literal["documented", "live"]
Row = dict[str, str | None]
Document = dict[str, Any]
Documents = list[Document]
Ids = list[int]

_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^,"\n]*))(,|\n|\Z)')
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_NO_PHOTO = {"thumbnail_url": None, "url": None}
_NO_SKU = {"null": {"quantity": None, "size": None}}


class _AnyTimestamp:
    """Equals every text of the form `2021-08-13T14:38:44.509Z`: the rows do not tell which moment it is."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and _TIMESTAMP.fullmatch(other) is not None

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "<any timestamp>"


TIMESTAMP = _AnyTimestamp()


class Oracle:
    """What the service must answer for the catalogue in one folder."""

    def __init__(self, folder: Path) -> None:
        self._products = _by_id(folder / "product.csv")
        self._features = _children(folder / "features.csv", "product_id")
        self._styles = _children(folder / "styles.csv", "productId")
        self._photos = _children(folder / "photos.csv", "styleId")
        self._skus = _children(folder / "skus.csv", "styleId")
        self._related = _children(folder / "related.csv", "current_product_id")

    def product_ids(self) -> Ids:
        """Every product, in id order."""
        return sorted(self._products)

    def quantities(self) -> dict[int, int]:
        """The stock of every SKU."""
        return {_id(row): int(row["quantity"] or 0) for rows in self._skus.values() for row in rows}

    def list(self, dialect: Dialect, *, page: int = 1, count: int = 5, campus: str = "hr-test") -> Documents:
        """Page `page` of the product list."""
        ids = self.product_ids()[(page - 1) * count : page * count]
        return [self._item(dialect, product_id, campus) for product_id in ids]

    def product(self, dialect: Dialect, product_id: int, *, campus: str = "hr-test") -> Document | None:
        """One product with its features; None where the service says 404."""
        if product_id not in self._products:
            return None
        features = [{"feature": row["feature"], "value": row["value"]} for row in self._features[product_id]]
        return {**self._item(dialect, product_id, campus), "features": features}

    def styles(self, dialect: Dialect, product_id: int) -> Document | None:
        """The styles of a product; None where the service says 404."""
        if product_id not in self._products:
            return None
        styles = [self._style(dialect, row) for row in self._styles[product_id]]
        return {"product_id": str(product_id), "results": styles}

    def style(self, style_id: int) -> Document | None:
        """One style in the documented form; None where the service says 404."""
        rows = [row for rows in self._styles.values() for row in rows if _id(row) == style_id]
        return self._style("documented", rows[0]) if rows else None

    def style_ids(self) -> Ids:
        """Every style, in id order."""
        return sorted(_id(row) for rows in self._styles.values() for row in rows)

    def related(self, product_id: int) -> Ids | None:
        """The related ids, the same in both dialects; None where the service says 404."""
        if product_id not in self._products:
            return None
        return [int(row["related_product_id"] or 0) for row in self._related[product_id]]

    def _item(self, dialect: Dialect, product_id: int, campus: str) -> Document:
        row = self._products[product_id]
        texts = {key: row[key] for key in ("name", "slogan", "description", "category")}
        if dialect == "documented":
            return {"id": product_id, **texts, "default_price": _short(row["default_price"])}
        times = {"created_at": TIMESTAMP, "updated_at": TIMESTAMP}
        return {"id": product_id, "campus": campus, **texts, "default_price": _long(row["default_price"]), **times}

    def _style(self, dialect: Dialect, row: Row) -> Document:
        documented = dialect == "documented"
        price = _short if documented else _long
        none = "0" if documented else None
        default = row["default_style"] == "1"
        return {
            "style_id": _id(row),
            "name": row["name"],
            "original_price": price(row["original_price"]),
            "sale_price": none if row["sale_price"] is None else price(row["sale_price"]),
            "default?": int(default) if documented else default,
            "photos": [
                {"thumbnail_url": photo["thumbnail_url"], "url": photo["url"]} for photo in self._photos[_id(row)]
            ]
            or [_NO_PHOTO],
            "skus": self._stock(_id(row)) or ({} if documented else _NO_SKU),
        }

    def _stock(self, style_id: int) -> Document:
        rows = self._skus[style_id]
        return {str(row["id"]): {"quantity": int(row["quantity"] or 0), "size": row["size"]} for row in rows}


def difference(expected: object, actual: object, path: str = "$") -> str | None:
    """Tells the first difference between two JSON values: order of keys and types count; None when they are alike."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        if list(expected) != list(actual):
            return f"{path}: keys {list(actual)} instead of {list(expected)}"
        pairs: Iterator[tuple[object, object, object]] = ((key, expected[key], actual[key]) for key in expected)
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return f"{path}: {len(actual)} items instead of {len(expected)}"
        pairs = ((at, *both) for at, both in enumerate(zip(expected, actual, strict=True)))
    elif expected != actual or (expected is not TIMESTAMP and type(expected) is not type(actual)):
        return f"{path}: {actual!r} instead of {expected!r}"
    else:
        return None
    found = (difference(left, right, f"{path}[{key!r}]") for key, left, right in pairs)
    return next((one for one in found if one is not None), None)


def read_rows(path: Path) -> list[Row]:
    """The rows of a clean CSV file by the names in its header; a bare null is None."""
    text = path.read_bytes().decode()
    records = list(_records(text if text.endswith("\n") else text + "\n"))
    names = [str(name) for name in records[0]]
    return [dict(zip(names, record, strict=True)) for record in records[1:]]


def _records(text: str) -> Iterator[list[str | None]]:
    at, record = 0, list[str | None]()
    while at < len(text):
        field = _FIELD.match(text, at)
        assert field is not None, f"not a clean CSV file at {text[at : at + 60]!r}"
        quoted, bare, end = field.groups()
        record.append(quoted.replace('""', '"') if quoted is not None else None if bare == "null" else bare)
        at = field.end()
        if end != ",":
            yield record
            record = []


def _id(row: Row) -> int:
    return int(row["id"] or 0)


def _by_id(path: Path) -> dict[int, Row]:
    return {_id(row): row for row in read_rows(path)}


def _children(path: Path, parent: str) -> defaultdict[int, list[Row]]:
    children = defaultdict[int, list[Row]](list)
    for row in sorted(read_rows(path), key=_id):
        children[int(row[parent] or 0)].append(row)
    return children


def _short(price: str | None) -> str:
    value = Decimal(price or 0)
    return str(int(value)) if value == int(value) else f"{value:.2f}"


def _long(price: str | None) -> str:
    return f"{Decimal(price or 0):.2f}"
