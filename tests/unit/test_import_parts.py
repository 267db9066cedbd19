"""The parts of an import that need no server: finding files, the report, the pace, the generator."""

import csv
from pathlib import Path
from random import Random

import pytest

from atelier.loading.files import FilesError, find_files
from atelier.loading.generate import generate_catalogue
from atelier.loading.layout import LAYOUTS
from atelier.loading.pace import Slot, must_wait
from atelier.loading.rejects import RejectLog, StrictError, group_of
from tests.oracle import Oracle, read_rows

TITLES = [layout.title for layout in LAYOUTS]
NAMES = {title: f"{title}.csv" for title in TITLES}
MIB = 1 << 20


@pytest.mark.parametrize("form", ["{}.csv", "{}Sample.csv", "{}_sample.csv"])
def test_files_are_found_by_their_names(tmp_path: Path, form: str) -> None:
    """A folder may hold the clean names or those of samples."""
    for title in TITLES:
        (tmp_path / form.format(title)).touch()
    assert {title: path.name for title, path in find_files([tmp_path]).items()} == {
        title: form.format(title) for title in TITLES
    }


def test_files_may_be_given_one_by_one(tmp_path: Path) -> None:
    """Paths in any order, and one under a name that says nothing."""
    paths = [tmp_path / name for name in ("products.csv", "related.csv", "skus.csv", "styles.csv", "features.csv")]
    other = tmp_path / "pictures.txt"
    for path in [*paths, other]:
        path.touch()
    assert find_files(paths, {"photos": other})["photos"] == other


def test_missing_or_double_files_are_named(tmp_path: Path) -> None:
    """A catalogue is six files, each of them once."""
    (tmp_path / "product.csv").touch()
    with pytest.raises(FilesError, match="no file for styles, skus, photos, related, features"):
        find_files([tmp_path])
    (tmp_path / "productSample.csv").touch()
    with pytest.raises(FilesError, match=r"both product\.csv and productSample\.csv"):
        find_files([tmp_path])


def test_report_is_sorted_by_file_and_line(tmp_path: Path) -> None:
    """Rows are refused in any order and listed in the order of the files."""
    with RejectLog(NAMES) as log:
        log.add("skus", "form", line=2, reason="id: negative", raw=b"-1,\xff\0")
        log.add("product", "orphan", line=4, reason="a (1)", raw=b"x")
        log.add("product", "form", line=3, reason="b", raw=b"y" * 3000)
        log.add("product", "form", line=5, reason="a (2)", raw=b"z")
        log.write(tmp_path / "rejects.csv")
        assert log.counts["product"] == {"a": 2, "b": 1}
    rows = list(csv.reader((tmp_path / "rejects.csv").read_text().splitlines()))
    assert [(row[0], row[1]) for row in rows[1:]] == [
        ("product.csv", "3"),
        ("product.csv", "4"),
        ("product.csv", "5"),
        ("skus.csv", "2"),
    ]
    assert rows[4][3] == "-1,\\xff\\x00"
    assert rows[1][3] == "y" * 2000 + "..."


def test_strict_report_ends_at_the_first_row() -> None:
    """The message says where and why."""
    with RejectLog(NAMES, strict=True) as log, pytest.raises(StrictError, match=r"skus\.csv line 2: id: negative"):
        log.add("skus", "form", line=2, reason="id: negative", raw=b"")


def test_reasons_are_counted_without_their_details() -> None:
    """Ten thousand orphans are one line of the summary."""
    assert group_of("productId: no product 17") == "productId: no product"
    assert group_of("id: duplicate (of line 3)") == "id: duplicate"
    assert group_of("not valid text (UTF-8)") == "not valid text"


def slot(kept_mib: int, *, active: bool = True) -> Slot:
    """A slot that may keep 2 GiB."""
    return Slot("pg2", active, kept_mib * MIB, 2048 * MIB)


@pytest.mark.parametrize(
    ("kept_mib", "coming_mib", "waiting", "waits"),
    [
        (10, 0, False, False),
        (1000, 0, False, False),
        (1100, 0, False, True),
        (700, 0, False, False),
        (700, 0, True, True),
        (500, 0, True, False),
        (700, 1000, False, True),
        (10, 5000, False, False),
    ],
)
def test_import_waits_for_the_slots(*, kept_mib: int, coming_mib: int, waiting: bool, waits: bool) -> None:
    """From half of what a slot keeps down to a quarter, and before big steps; never for one that is close by."""
    found = must_wait([slot(kept_mib)], coming_bytes=coming_mib * MIB, waiting=waiting)
    assert (found is not None) is waits


def test_import_does_not_wait_for_who_is_not_there() -> None:
    """Nobody would ever catch up on a slot without a connection; the furthest of the others is named."""
    slots = [slot(2000, active=False), slot(1500), slot(1800)]
    assert must_wait(slots, coming_bytes=0, waiting=False) == slots[2]


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """A clean catalogue of three blocks."""
    generate_catalogue(tmp_path / "made", products=3_000, seed=7)
    return tmp_path / "made"


def test_generated_catalogue_has_the_real_proportions(generated: Path) -> None:
    """Counts follow from the number of products; a fifth have no styles; some styles lack photos or SKUs."""
    counts = {title: len(read_rows(generated / f"{title}.csv")) for title in TITLES}
    assert counts == {
        "product": 3_000,
        "features": 3_000 * 2_219_279 // 1_000_011,
        "styles": 3_000 * 1_958_102 // 1_000_011,
        "photos": 3_000 * 5_655_656 // 1_000_011,
        "skus": 3_000 * 11_323_917 // 1_000_011,
        "related": 3_000 * 4_508_263 // 1_000_011,
    }
    oracle = Oracle(generated)
    styles = [oracle.styles("live", product_id)["results"] for product_id in oracle.product_ids()]  # type: ignore[index]
    assert sum(not each for each in styles) == 600
    flat = [style for each in styles for style in each]
    assert any(style["photos"] == [{"thumbnail_url": None, "url": None}] for style in flat)
    assert any("null" in style["skus"] for style in flat)
    assert any(style["sale_price"] is None for style in flat)
    assert any(_repeats([sku["size"] for sku in style["skus"].values()]) for style in flat)
    assert any(_repeats(oracle.related(product_id) or []) for product_id in oracle.product_ids())


def test_generator_is_deterministic(tmp_path: Path) -> None:
    """The same seed gives the same bytes, another one others; dirt does not change what is beneath."""
    seed = Random().randrange(1000)
    for name, chosen in (("a", seed), ("b", seed), ("c", seed + 1)):
        generate_catalogue(tmp_path / name, products=50, seed=chosen, dirty=True)
    for title in [*TITLES, "expected-rejects"]:
        first = (tmp_path / "a" / f"{title}.csv").read_bytes()
        assert first == (tmp_path / "b" / f"{title}.csv").read_bytes()
        assert first != (tmp_path / "c" / f"{title}.csv").read_bytes()


def _repeats(values: list[object]) -> bool:
    return len(set(values)) < len(values)
