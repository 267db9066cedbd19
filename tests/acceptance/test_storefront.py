"""The eight storefront reads, through the real service, against documents computed from the CSV rows."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.loading.files import find_files
from atelier.loading.importer import ImportOptions, import_catalogue
from atelier.loading.progress import Silent
from atelier.loading.seed import DEMO_FOLDER
from tests.oracle import Dialect, Oracle, difference
from tests.random_catalogue import write_random_catalogue
from tests.support import Service, role_dsn, running_cluster, running_service

SHARED = Path(__file__).parents[3] / "shared" / "data" / "catalogue-10"
DIALECTS: tuple[Dialect, ...] = ("documented", "live")
CAMPUS = "hr-test"

pytestmark = [pytest.mark.cluster]


@dataclass
class Shop:
    """A catalogue behind the service, what it must answer, and a client that has seen the import."""

    oracle: Oracle
    http: httpx.Client

    def differs(self, path: str, dialect: Dialect, expected: object) -> str | None:
        """The first difference between what is expected and what is served; None when there is none."""
        base = "" if dialect == "documented" else f"/api/fec2/{CAMPUS}"
        response = self.http.get(base + path)
        if expected is None:
            return None if response.status_code == 404 else f"{path}: {response.status_code} instead of 404"
        found = difference(expected, json.loads(response.content)) if response.status_code == 200 else response.text
        return found and f"{dialect} {path}: {found}"

    def first_difference(self, cases: Iterator[tuple[str, Dialect, object]]) -> str | None:
        """The first difference over many cases."""
        return next((found for case in cases if (found := self.differs(*case)) is not None), None)


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[EmbeddedCluster]:
    """A cluster whose catalogue is replaced again and again."""
    with running_cluster(replicas=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def own_service(own_cluster: EmbeddedCluster) -> Iterator[Service]:
    """The service over it."""
    with running_service(own_cluster) as service:
        yield service


@pytest.fixture(scope="module", params=["demo", "random-1", "random-2", "catalogue-10"])
def shop(request: Any, own_cluster: EmbeddedCluster, own_service: Service, tmp_path_factory: Any) -> Iterator[Shop]:
    """A catalogue, imported."""
    folder = _folder_of(request.param, tmp_path_factory)
    options = ImportOptions(strict=True)
    dsn = role_dsn(own_cluster, "migrator")
    asyncio.run(import_catalogue(find_files([folder]), dsn, options=options, watcher=Silent(), clock=time.monotonic))
    with httpx.Client(base_url=own_service.url) as client:
        seen = client.get("/products", headers={"Atelier-Consistency": "strong"})
        client.headers["Atelier-Token"] = seen.headers["Atelier-Token"]
        yield Shop(Oracle(folder), client)


def _folder_of(name: str, tmp_path_factory: Any) -> Path:
    if name == "demo":
        return DEMO_FOLDER
    if name == "catalogue-10":
        if not SHARED.is_dir():
            pytest.skip("the shared catalogue is not here")
        return SHARED
    return write_random_catalogue(tmp_path_factory.mktemp("catalogue"), seed=int(name.partition("-")[2]))


@pytest.mark.parametrize("count", [1, 3, 5, 1000])
def test_pages_are_exact_and_in_key_order(shop: Shop, count: int) -> None:
    """Every page of every dialect, and the one past the end."""
    last = -(-len(shop.oracle.product_ids()) // count)

    def cases() -> Iterator[tuple[str, Dialect, object]]:
        for dialect in DIALECTS:
            for page in range(1, last + 2):
                expected = shop.oracle.list(dialect, page=page, count=count, campus=CAMPUS)
                yield f"/products?page={page}&count={count}", dialect, expected

    assert shop.first_difference(cases()) is None


def test_the_first_page_of_five_is_the_default(shop: Shop) -> None:
    """Neither parameter has to be sent."""
    assert shop.differs("/products", "documented", shop.oracle.list("documented")) is None


def test_products_have_their_features_in_key_order(shop: Shop) -> None:
    """Every product, both dialects; and ids between them that no product has."""

    def cases() -> Iterator[tuple[str, Dialect, object]]:
        for dialect in DIALECTS:
            for product_id in range(1, shop.oracle.product_ids()[-1] + 2):
                expected = shop.oracle.product(dialect, product_id, campus=CAMPUS)
                yield f"/products/{product_id}", dialect, expected

    assert shop.first_difference(cases()) is None


def test_styles_have_their_photos_and_skus_in_key_order(shop: Shop) -> None:
    """Every product, both dialects; none without photos, SKUs or styles is left out."""

    def cases() -> Iterator[tuple[str, Dialect, object]]:
        for dialect in DIALECTS:
            for product_id in range(1, shop.oracle.product_ids()[-1] + 2):
                yield f"/products/{product_id}/styles", dialect, shop.oracle.styles(dialect, product_id)

    assert shop.first_difference(cases()) is None


def test_related_ids_keep_their_order_and_duplicates(shop: Shop) -> None:
    """Every product, both dialects."""

    def cases() -> Iterator[tuple[str, Dialect, object]]:
        for dialect in DIALECTS:
            for product_id in range(1, shop.oracle.product_ids()[-1] + 2):
                yield f"/products/{product_id}/related", dialect, shop.oracle.related(product_id)

    assert shop.first_difference(cases()) is None


def test_one_style_is_the_same_as_in_its_list(shop: Shop) -> None:
    """Every style by its own address."""
    cases = ((f"/styles/{style_id}", "documented", shop.oracle.style(style_id)) for style_id in shop.oracle.style_ids())
    assert shop.first_difference(iter(cases)) is None


def test_links_lead_over_all_pages_and_back(shop: Shop) -> None:
    """A crawler that only follows `next` sees every product once; `prev` leads back; `last` is where `next` ends."""
    seen, trail, path = [], [], "/products?count=4"
    while path:
        response = shop.http.get(path)
        seen += [item["id"] for item in response.json()]
        trail.append(response.links)
        path = response.links["next"]["url"] if "next" in response.links else ""
    assert seen == shop.oracle.product_ids()
    assert "prev" not in trail[0]
    assert trail[0]["last"]["url"] == f"/products?page={len(trail)}&count=4" == trail[-1]["last"]["url"]
    assert [links["prev"]["url"] for links in trail[1:]] == [
        f"/products?page={n}&count=4" for n in range(1, len(trail))
    ]


def test_the_cursor_leads_over_all_products(shop: Shop) -> None:
    """The keyset form: `next` carries the cursor, and the last page has none."""
    seen, path = [], f"/api/fec2/{CAMPUS}/products?after=0&count=3"
    while path:
        response = shop.http.get(path)
        seen += [item["id"] for item in response.json()]
        path = response.links["next"]["url"] if "next" in response.links else ""
    assert seen == shop.oracle.product_ids()


def test_reads_are_served_by_a_replica(shop: Shop) -> None:
    """The primary is left to the commands."""
    shop.http.get("/products", headers={"Atelier-Wait-Ms": "2000"})
    unasked = [f"/products?count={count}" for count in range(500, 520)]  # a page that was asked for is remembered
    assert {shop.http.get(path).headers["Atelier-Served-By"] for path in unasked} == {"pg2"}


def test_times_are_milliseconds_in_utc(shop: Shop) -> None:
    """As existing front ends parse them."""
    item = shop.http.get(f"/api/fec2/{CAMPUS}/products?count=1").json()[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", item["created_at"])
