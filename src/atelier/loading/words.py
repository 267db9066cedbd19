"""What generated products are called and said to be; the pools that the generator draws from."""

from random import Random

_MAKERS = (
    "Alder",
    "Birch",
    "Calla",
    "Dune",
    "Ember",
    "Fjord",
    "Gable",
    "Heron",
    "Iris",
    "Juniper",
    "Kestrel",
    "Linden",
)
_MANNERS = (
    "Quiet",
    "Early",
    "Second",
    "Northern",
    "Folded",
    "Slow",
    "Painted",
    "Open",
    "Winter",
    "Plain",
    "Tall",
    "Last",
)
_THINGS = (
    "Jacket", "Coat", "Shirt", "Sweater", "Hoodie", "Dress", "Skirt", "Pants", "Shorts", "Slacks", "Suit", "Romper",
    "Socks", "Sneakers", "Boots", "Heels", "Hat", "Cap", "Scarf", "Backpack", "Sunglasses", "Pyjamas",
)  # fmt: skip
_PARTS = (
    "The seams are taped and the hem is weighted.",
    "Cut from one length of cloth, so the pattern meets at the sides.",
    "It washes at thirty degrees and dries on the way home.",
    "Pockets where hands expect them, and one where they don't.",
    "Made to be mended: the thread comes with it.",
    "Softer every year, like the people who wear it.",
    "The lining was somebody's curtain once, and looks better now.",
    "Buttons, not zips, because buttons can be found again.",
    "Roomy in the shoulder and short in the sleeve.",
    "It has been worn on a bicycle, in the rain, uphill.",
    "The colour is the one that you thought of.",
    "Sold singly, worn in twos, lost in threes.",
)
_SLOGANS = (
    "Made for weather",
    "Worn, not kept",
    "Goes with the other one",
    "Less of the same",
    "As if by accident",
    "",
)
_COLOURS = ("Black", "White", "Slate", "Moss", "Rust", "Sand", "Ink", "Brick", "Cream", "Plum", "Sky", "Olive")
_FEATURES = ("Fabric", "Cut", "Sole", "Lining", "Lens", "Buttons", "Stitching", "Frame")
_VALUES = ("Cotton", "Loose", "Rubber", "Silk", "Polarised", "Horn", "Double", "Steel", "Recycled", "Merino")
_CLAIMS = ("Fair trade", "Repair for life", "Vegan", "Made to order")
_SIZES = (
    ("XS", "S", "M", "L", "XL", "XXL"),
    ("XS", "S", "M", "L", "XL", "XL"),
    ("7", "7.5", "8", "8.5", "9", "9.5", "10", "10.5", "11", "11.5", "12"),
    ("One Size",),
    ("28", "30", "32", "34", "36", "38"),
)
_DESCRIPTIONS = 2_000
_PHOTOS = 2_000
_MOST_SKUS = 64


def quote(text: str) -> str:
    """A text as the files hold it."""
    return '"' + text.replace('"', '""') + '"'


def product_names() -> list[tuple[str, str]]:
    """Every product name with its category, both quoted."""
    return [
        (quote(f"{maker}'s {manner} {thing}" if at % 3 else f"{manner} {thing} {at * 50}"), quote(thing))
        for at, maker in enumerate(_MAKERS)
        for manner in _MANNERS
        for thing in _THINGS
    ]


def descriptions(random: Random) -> list[str]:
    """Slogan and description, quoted, with the comma between them."""
    return [
        f"{quote(random.choice(_SLOGANS))},{quote(' '.join(random.sample(_PARTS, random.randrange(2, 6))))}"
        for _ in range(_DESCRIPTIONS)
    ]


def style_names() -> list[str]:
    """Every name of a style, quoted."""
    return [quote(f"{one} & {other}" if one != other else one) for one in _COLOURS for other in _COLOURS]


def features() -> list[str]:
    """Every feature with its value: some are claims that have none."""
    named = [f"{quote(name)},{quote(value)}" for name in _FEATURES for value in _VALUES]
    return named + [f"{quote(claim)},null" for claim in _CLAIMS for _ in range(5)]


def photos(random: Random) -> list[str]:
    """Addresses of a photo and of its thumbnail, quoted, with the comma between them."""
    stems = [
        f"https://images.example.com/photo-{random.getrandbits(44):013}-{random.getrandbits(48):012x}"
        for _ in range(_PHOTOS)
    ]
    tail = "?auto=format&fit=crop&q=80&w="
    return [f'"{stem}{tail}1200","{stem}{tail}300"' for stem in stems]


def sizes() -> list[list[list[str]]]:
    """For each system of sizes, and each number of SKUs, their sizes: they repeat when the system has no more."""
    return [
        [[quote(system[at % len(system)]) for at in range(count)] for count in range(_MOST_SKUS)] for system in _SIZES
    ]
