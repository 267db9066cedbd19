"""Every command as a frozen struct: its shape and its bounds, nothing else.

What the address and the headers say (ids, `If-Match`) is no part of the body; a command carries both, the body in
`body` where it has one. Strict: unknown fields are refused, `"1"` and `true` are no numbers.
"""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

LARGEST_ID = 2**63 - 1
LARGEST_STOCK = 2**31 - 1
_LARGEST_LINES = 500

Id = Annotated[int, Meta(ge=1, le=LARGEST_ID)]
Quantity = Annotated[int, Meta(ge=1, le=LARGEST_STOCK)]
OnHand = Annotated[int, Meta(ge=0, le=LARGEST_STOCK)]
Delta = Annotated[int, Meta(ge=-LARGEST_STOCK, le=LARGEST_STOCK)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
ShortText = Annotated[str, Meta(max_length=500)]
LongText = Annotated[str, Meta(max_length=10_000)]
Price = Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,2})?$(?!\n)", max_length=12)]
Url = Annotated[str, Meta(pattern=r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s/]", max_length=2_000)]
Size = Annotated[str, Meta(min_length=1, max_length=100)]
TtlSeconds = Annotated[int, Meta(ge=30, le=86_400)]


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client sends as JSON."""


class Command(msgspec.Struct, frozen=True):
    """An order to change something; the class says what."""


# Inventory


class AdjustmentLine(Body, frozen=True):
    """Adds to what is on hand of one SKU, or takes away."""

    sku_id: Id
    delta: Delta


class Adjustment(Body, frozen=True):
    """Body of `AdjustStock`."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]
    lines: Annotated[list[AdjustmentLine], Meta(min_length=1, max_length=_LARGEST_LINES)]


class AdjustStock(Command, frozen=True):
    """Changes what is on hand of some SKUs, all or nothing."""

    body: Adjustment


class Count(Body, frozen=True):
    """Body of `CountStock`."""

    on_hand: OnHand


class CountStock(Command, frozen=True):
    """Sets what is on hand of one SKU after somebody looked into the shelf."""

    sku_id: int
    body: Count
    if_match: "VersionMatch"


class ReservationLine(Body, frozen=True):
    """Promises some of one SKU."""

    sku_id: Id
    quantity: Quantity


class Reservation(Body, frozen=True):
    """Body of `ReserveStock`."""

    lines: Annotated[list[ReservationLine], Meta(min_length=1, max_length=_LARGEST_LINES)]
    ttl_seconds: TtlSeconds


class ReserveStock(Command, frozen=True):
    """Keeps stock for a customer until the reservation is confirmed, released or expires."""

    body: Reservation


class ConfirmReservation(Command, frozen=True):
    """Sells what was reserved."""

    reservation_id: int


class ReleaseReservation(Command, frozen=True):
    """Gives back what was reserved."""

    reservation_id: int


# Catalogue


class Feature(Body, frozen=True):
    """One feature of a product."""

    feature: Annotated[str, Meta(min_length=1, max_length=500)]
    value: ShortText | None


class Photo(Body, frozen=True):
    """Where a photo lies; the service never fetches it."""

    url: Url
    thumbnail_url: Url


class Sku(Body, frozen=True):
    """A size of a style, and what is on hand of it at first."""

    size: Size
    quantity: OnHand


Features = Annotated[list[Feature], Meta(max_length=500)]
Related = Annotated[list[Id], Meta(max_length=1_000)]
Photos = Annotated[list[Photo], Meta(max_length=500)]
Skus = Annotated[list[Sku], Meta(max_length=500)]


class Style(Body, frozen=True):
    """A style with its photos and SKUs."""

    name: Name
    original_price: Price
    sale_price: Price | None
    is_default: bool = msgspec.field(name="default?")
    photos: Photos = []
    skus: Skus = []


class ProductFields(Body, frozen=True):
    """The five fields of a product."""

    name: Name
    slogan: LongText
    description: LongText
    category: ShortText
    default_price: Price


class NewProduct(ProductFields, frozen=True):
    """A whole product in one command."""

    features: Features = []
    related: Related = []
    styles: Annotated[list[Style], Meta(max_length=200)] = []


class ProductPatch(Body, frozen=True):
    """Some of the five fields (RFC 7396). None of them can be removed, so none may be null."""

    name: Name | UnsetType = UNSET
    slogan: LongText | UnsetType = UNSET
    description: LongText | UnsetType = UNSET
    category: ShortText | UnsetType = UNSET
    default_price: Price | UnsetType = UNSET


class StylePatch(Body, frozen=True):
    """Some fields of a style (RFC 7396); `sale_price: null` ends the sale."""

    name: Name | UnsetType = UNSET
    original_price: Price | UnsetType = UNSET
    sale_price: Price | UnsetType | None = UNSET
    is_default: bool | UnsetType = msgspec.field(name="default?", default=UNSET)


class CreateProduct(Command, frozen=True):
    """Makes a product."""

    body: NewProduct


class ReplaceProduct(Command, frozen=True):
    """Sets all five fields of a product."""

    product_id: int
    body: ProductFields
    if_match: "VersionMatch"


class PatchProduct(Command, frozen=True):
    """Sets some of the five fields of a product."""

    product_id: int
    body: ProductPatch
    if_match: "VersionMatch"


class DeleteProduct(Command, frozen=True):
    """Takes a product out of the catalogue with everything that belongs to it."""

    product_id: int
    if_match: "VersionMatch"


class ReplaceFeatures(Command, frozen=True):
    """Sets the list of a product's features."""

    product_id: int
    body: Features
    if_match: "VersionMatch"


class ReplaceRelated(Command, frozen=True):
    """Sets the list of a product's related products."""

    product_id: int
    body: Related
    if_match: "VersionMatch"


class CreateStyle(Command, frozen=True):
    """Adds a style to a product."""

    product_id: int
    body: Style
    if_match: "VersionMatch"


class PatchStyle(Command, frozen=True):
    """Sets some fields of a style."""

    style_id: int
    body: StylePatch
    if_match: "VersionMatch"


class DeleteStyle(Command, frozen=True):
    """Takes a style away with its photos and SKUs."""

    style_id: int
    if_match: "VersionMatch"


class ReplacePhotos(Command, frozen=True):
    """Sets the list of a style's photos."""

    style_id: int
    body: Photos
    if_match: "VersionMatch"


class CreateSku(Command, frozen=True):
    """Adds a size to a style."""

    style_id: int
    body: Sku
    if_match: "VersionMatch"


class DeleteSku(Command, frozen=True):
    """Takes a SKU away."""

    sku_id: int
    if_match: "VersionMatch"


class VersionMatch(msgspec.Struct, frozen=True):
    """What `If-Match` asks of the present version.

    Attributes:
        versions: it must be one of these; None when any will do.
    """

    versions: tuple[int, ...] | None = None

    def allows(self, version: int) -> bool:
        """Whether a version satisfies the precondition."""
        return self.versions is None or version in self.versions


def describe(command: Command) -> dict[str, Any]:
    """The ids that a command's address names, for the audit."""
    return {
        name: value for name in command.__struct_fields__ if name.endswith("_id") and (value := getattr(command, name))
    }
