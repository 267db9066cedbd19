"""The course's six CSV files: their columns, what each may hold, and the tables that they fill.

```
product.csv   id, name, slogan, description, category, default_price
features.csv  id, product_id, feature, value
styles.csv    id, productId, name, sale_price, original_price, default_style
photos.csv    id, styleId, url, thumbnail_url
skus.csv      id, styleId, size, quantity
related.csv   id, current_product_id, related_product_id
```

Texts stand in double quotes, numbers do not, and a bare `null` is NULL. A row is one line, unless its id is quoted:
then its quotes are trusted and a text may run over several lines.
"""

from dataclasses import dataclass
from enum import Enum

# Longer names are refused by the commands too; the other limits only keep nonsense out.
MAX_NAME_CHARS = 200
MAX_TEXT_CHARS = 10_000
MAX_URL_CHARS = 2_048
# Half of the 64-bit ids stay free: one absurd id in a file must not use up the sequence for ever.
MAX_ID = 2**62
MAX_QUANTITY = 2**31 - 1


class Kind(Enum):
    """What a column holds, and so how it is read, checked and written."""

    ID = "id"
    TEXT = "text"
    PRICE = "price"
    QUANTITY = "quantity"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a file.

    Attributes:
        name: in the file's header.
        target: in the table.
        kind: of the values.
        nullable: a bare `null` is allowed.
        min_chars: of a text.
        max_chars: of a text.
        parent: the table whose id the value must be; None when it refers to nothing.
    """

    name: str
    target: str
    kind: Kind
    nullable: bool = False
    min_chars: int = 0
    max_chars: int = 0
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """One of the six files.

    Attributes:
        title: the file's name without `.csv`.
        table: what its rows become.
        columns: in the order of a clean file; the first is the row's own id.
    """

    title: str
    table: str
    columns: tuple[Column, ...]

    @property
    def parents(self) -> tuple[Column, ...]:
        """The columns that refer to a row of another file."""
        return tuple(column for column in self.columns if column.parent)


def _id(target: str, name: str | None = None, parent: str | None = None) -> Column:
    return Column(name or target, target, Kind.ID, parent=parent)


def _text(name: str, max_chars: int = MAX_TEXT_CHARS, *, min_chars: int = 0, nullable: bool = False) -> Column:
    return Column(name, name, Kind.TEXT, nullable=nullable, min_chars=min_chars, max_chars=max_chars)


PRODUCT = Layout(
    "product",
    "product",
    (
        _id("id"),
        _text("name", MAX_NAME_CHARS, min_chars=1),
        _text("slogan"),
        _text("description"),
        _text("category"),
        Column("default_price", "default_price", Kind.PRICE),
    ),
)
FEATURES = Layout(
    "features",
    "feature",
    (_id("id"), _id("product_id", parent="product"), _text("feature"), _text("value", nullable=True)),
)
STYLES = Layout(
    "styles",
    "style",
    (
        _id("id"),
        _id("product_id", "productId", parent="product"),
        _text("name", MAX_NAME_CHARS),
        Column("sale_price", "sale_price", Kind.PRICE, nullable=True),
        Column("original_price", "original_price", Kind.PRICE),
        Column("default_style", "is_default", Kind.FLAG),
    ),
)
PHOTOS = Layout(
    "photos",
    "photo",
    (
        _id("id"),
        _id("style_id", "styleId", parent="style"),
        _text("url", MAX_URL_CHARS, nullable=True),
        _text("thumbnail_url", MAX_URL_CHARS, nullable=True),
    ),
)
SKUS = Layout(
    "skus",
    "sku",
    (
        _id("id"),
        _id("style_id", "styleId", parent="style"),
        _text("size", MAX_NAME_CHARS, nullable=True),
        Column("quantity", "on_hand", Kind.QUANTITY),
    ),
)
RELATED = Layout(
    "related",
    "related",
    (
        _id("id"),
        _id("product_id", "current_product_id", parent="product"),
        _id("related_product_id", parent="product"),
    ),
)

# Parents before children. The big ones come early, so that their keys are built while the rest still loads.
LAYOUTS = (PRODUCT, STYLES, SKUS, PHOTOS, RELATED, FEATURES)
