"""Whole catalogues in and out: what was in the files is what is in the database."""

import asyncio
import csv
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atelier.loading.generate import generate_catalogue
from atelier.loading.layout import LAYOUTS
from atelier.loading.scan import HeaderError
from atelier.loading.seed import DEMO_FOLDER, load_demo
from tests.importing.conftest import Database
from tests.oracle import Oracle, difference
from tests.random_catalogue import HEADERS, write_random_catalogue

SHARED = Path(__file__).parents[3] / "shared" / "data"
TITLES = [layout.title for layout in LAYOUTS]


def documents(folder: Path) -> list[object]:
    """Everything that a catalogue's reads would answer, computed from its files."""
    oracle = Oracle(folder)
    ids = oracle.product_ids()
    products = [[oracle.product("documented", one), oracle.styles("live", one), oracle.related(one)] for one in ids]
    return [ids, *products, oracle.quantities()]


def assert_same(expected: Path, actual: Path) -> None:
    """Fails with the first difference between two catalogues."""
    assert difference(documents(expected), documents(actual)) is None


def shared(name: str) -> Path:
    """A folder of real data; the test is skipped where there is none."""
    if not (SHARED / name).is_dir():
        pytest.skip("no shared data here")
    return SHARED / name


@pytest.mark.parametrize("seed", range(3))
def test_random_catalogue_comes_back_as_it_was(database: Database, tmp_path: Path, seed: int) -> None:
    """Import, export, and compare by what a reader would see."""
    made = write_random_catalogue(tmp_path / "made", seed=seed)
    report = database.load(made)
    assert report.rejected == 0
    assert_same(made, database.export(tmp_path / "back"))


def test_demo_catalogue_is_loaded_once(tmp_path: Path, database: Database) -> None:
    """Only where there are no products; and it is clean."""
    database.load(write_random_catalogue(tmp_path / "none", seed=1, products=0))
    lines: list[str] = []
    for _ in range(2):
        asyncio.run(load_demo(database.dsn, say=lines.append, clock=time.monotonic))
    assert lines == ["demo catalogue loaded: 36 products"]
    assert_same(DEMO_FOLDER, database.export(tmp_path / "back"))


def test_real_products_are_imported(database: Database, tmp_path: Path) -> None:
    """The ten real products; the fifth names its relatives in their order, twice one of them."""
    folder = shared("catalogue-10")
    assert database.load(folder).rejected == 0
    assert_same(folder, database.export(tmp_path / "back"))
    rows = database.fetch("select related_product_id from related where product_id = 5 order by position")
    assert [row[0] for row in rows] == [6, 6, 8, 9, 1, 3]


def test_raw_files_are_imported_without_a_loss(database: Database, tmp_path: Path) -> None:
    """The files as they were published: every line is a row or is in the report."""
    folder = shared("catalogue-raw")
    report = database.load(folder, rejects=tmp_path / "rejects.csv")
    for file in report.files.values():
        lines = (folder / file.name).read_text().splitlines()
        assert file.rows == len(lines) - (not lines[0][0].isdecimal())
    assert database.value("select default_price::text from product where id = 11") == "49.00"
    rows = database.fetch("select id, thumbnail_url from photo where id in (1, 48) order by id")
    assert [row["thumbnail_url"].endswith("w=300&q=80") for row in rows] == [True, True]
    listed = list(csv.reader((tmp_path / "rejects.csv").read_text().splitlines()))[1:]
    assert len(listed) == report.rejected


@pytest.mark.parametrize("products", [3, 2_500])
def test_every_planted_fault_is_reported_and_nothing_else(database: Database, tmp_path: Path, products: int) -> None:
    """The report is what the generator expects, and what is left is the clean catalogue, byte for byte."""
    generate_catalogue(tmp_path / "dirty", products=products, seed=products, dirty=True)
    generate_catalogue(tmp_path / "clean", products=products, seed=products)
    report = database.load(tmp_path / "dirty", rejects=tmp_path / "rejects.csv")
    assert (tmp_path / "rejects.csv").read_text() == (tmp_path / "dirty" / "expected-rejects.csv").read_text()
    assert report.rejected == len((tmp_path / "rejects.csv").read_text().splitlines()) - 1
    back = database.export(tmp_path / "back")
    for title in TITLES:
        assert (back / f"{title}.csv").read_bytes() == (tmp_path / "clean" / f"{title}.csv").read_bytes()


def test_export_of_an_import_of_an_export_is_the_same(database: Database, tmp_path: Path) -> None:
    """Also with texts of several lines that look like rows, quotes, and values that look like null."""
    database.load(DEMO_FOLDER)
    awkward = ['a\n12,"b","c","d","e",5\n', "\r\n", '"', "null", "\\N", "a\rb", '\n""', ",\n,", "1,5 l\n\n\n2,5 l"]
    for product_id, text in enumerate(awkward, start=1):
        database.fetch("update product set description = $2, slogan = $2 where id = $1", product_id, text)
    first = database.export(tmp_path / "first")
    assert database.load(first).rejected == 0
    second = database.export(tmp_path / "second")
    for title in TITLES:
        assert (first / f"{title}.csv").read_bytes() == (second / f"{title}.csv").read_bytes()
    rows = database.fetch("select description from product where id <= $1 order by id", len(awkward))
    assert [row[0] for row in rows] == awkward


def test_rows_out_of_order_and_missing_headers_are_put_right(database: Database, tmp_path: Path) -> None:
    """Related rows keep the order of their ids, whatever their order in the file."""
    made = write_random_catalogue(tmp_path / "made", seed=9)
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for name in HEADERS:
        _, *rows = (made / f"{name}.csv").read_text().splitlines()
        (shuffled / f"{name}.csv").write_text("\r\n".join(reversed(rows)))
    database.load(shuffled)
    assert_same(made, database.export(tmp_path / "back"))


def test_children_of_refused_rows_are_refused_too(database: Database, tmp_path: Path) -> None:
    """A product that cannot be read takes its styles, photos and SKUs with it, each of them in the report."""
    made = write_random_catalogue(tmp_path / "made", seed=2, products=4)
    add(made, "product", '9001,"Lost","","","",free')
    add(made, "styles", '9001,9001,"Lost",null,1,0')
    add(made, "skus", '9001,9001,"S",1')
    add(made, "related", "9001,9001,9001")
    report = database.load(made, rejects=tmp_path / "rejects.csv")
    assert {title: dict(file.reasons) for title, file in report.files.items() if file.rejected} == {
        "product": {"default_price: not a price": 1},
        "styles": {"productId: no product": 1},
        "skus": {"styleId: no style": 1},
        "related": {"current_product_id: no product": 1},
    }
    assert database.value("select count(*) from stock where sku_id = 9001") == 0


def test_the_first_of_two_rows_with_one_id_stays(database: Database, tmp_path: Path) -> None:
    """Also when they lie far apart, and with its stock."""
    made = write_random_catalogue(tmp_path / "made", seed=2, products=9)
    style_id = Oracle(made).style_ids()[0]
    add(made, "skus", f'9001,{style_id},"first",1', f'9002,{style_id},"only",2', f'9001,{style_id},"second",3')
    report = database.load(made)
    assert report.files["skus"].reasons == {"id: duplicate": 1}
    rows = database.fetch("select size, on_hand from sku join stock on sku_id = id where id > 9000 order by id")
    assert [tuple(row) for row in rows] == [("first", 1), ("only", 2)]


def add(folder: Path, title: str, *rows: str) -> None:
    """Adds rows at the end of a file."""
    with (folder / f"{title}.csv").open("a") as file:
        file.writelines(f"{row}\n" for row in rows)


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            ['1,1,"a"', '1,1,"a","b"', '2,1,"a",3', '1,"a","","","",1', "1,1,1", '1,1,"a",null,1,1', "2,1,2"]
        ),
        st.text(st.sampled_from('0123456789,"\r $-nulé\0'), max_size=20),
    ),
    max_size=8,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.fixed_dictionaries(dict.fromkeys(TITLES, LINES)))
def test_any_six_files_are_loaded_or_refused_row_by_row(
    database: Database, tmp_path: Path, files: dict[str, list[str]]
) -> None:
    """Never a crash, and rows in the files = rows loaded + rows refused, counted in the database."""
    for title, lines in files.items():
        (tmp_path / f"{title}.csv").write_bytes("\n".join([HEADERS[title], *lines]).encode())
    try:
        report = database.load(tmp_path)
    except HeaderError:
        return
    tables = [*(layout.table for layout in LAYOUTS), "stock"]
    (counts,) = database.fetch(f"select {', '.join(f'(select count(*) from {table})' for table in tables)}")
    loaded = [report.files[layout.title].loaded for layout in LAYOUTS]
    assert list(counts) == [*loaded, report.files["skus"].loaded]
