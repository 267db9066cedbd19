"""Scenarios in which nothing breaks."""

from loadtest.scenarios.model import EVERYTHING, FEED, READS, STOCK, WRITES, Crew, Phase, Scenario
from loadtest.users.shoppers import Buyer, Checkout, Onlooker, Shopper
from loadtest.users.staff import CatalogueAdmin, Editor, Refiller, Returner, Warehouse
from loadtest.world import Shop

MIXED = (
    Crew(Shopper, 4, 0.5),
    Crew(Checkout, 6, 1.0),
    Crew(Warehouse, 6, 2.0, {"counts": True}),
    Crew(CatalogueAdmin, 3, 1.0),
    Crew(Onlooker, 6, 3.0),
    Crew(Refiller, 4, 2.0),
    Crew(Editor, 2, 1.0),
)
"""A bit of everything, about a hundred requests a second: what breaks is what the run is about, not the load."""

LOAD = (
    Scenario(
        "browse-ramp",
        "product pages at a rising rate until errors exceed 3 % or the 95th percentile its limit; tells the knee",
        (Crew(Shopper, 24, 0.25, {"way": "last-tenth"}),),
        checks=("monotonic reads",),
        shop=Shop(products=60),
        phases=tuple(Phase(f"x{rate:g}", rate=rate) for rate in (1, 2, 3, 4, 6, 8, 12, 16)),
        duration_s=48,
        watchers=0,
        stops_at_knee=True,
    ),
    Scenario(
        "balance-compare",
        "the same browsing with each of the router's strategies, side by side",
        (Crew(Shopper, 12, 0.5),),
        checks=("monotonic reads",),
        phases=tuple(
            Phase(name, settings={"ATELIER_STRATEGY": name})
            for name in ("least-outstanding", "round-robin", "random-two-choices", "latency-ewma")
        ),
        duration_s=40,
        watchers=0,
        needs_cluster=True,
    ),
    Scenario(
        "heavy-writes",
        "warehouses and admins at work on a few SKUs, onlookers beside them",
        (
            Crew(Warehouse, 24, 4.0),
            Crew(CatalogueAdmin, 4, 2.0),
            Crew(Refiller, 4, 2.0),
            Crew(Onlooker, 8, 3.0),
            Crew(Checkout, 4, 1.0, {"only_hot": True}),
        ),
        checks=EVERYTHING,
    ),
    Scenario(
        "flash-sale",
        "thousands of buyers want one SKU",
        (Crew(Buyer, 60, 1.5), Crew(Onlooker, 8, 2.0)),
        checks=(*READS, "linearizability", *STOCK),
        shop=Shop(products=1, skus=1, stock=400),
        hot=1,
        watchers=0,
    ),
    Scenario(
        "crossing-baskets",
        "baskets of many lines over the same SKUs, in every order",
        (
            Crew(Checkout, 30, 1.5, {"only_hot": True, "basket": 8}),
            Crew(Warehouse, 6, 2.0, {"most_lines": 8}),
            Crew(Onlooker, 4, 2.0),
        ),
        checks=(*READS, *WRITES, *STOCK, *FEED),
    ),
    Scenario(
        "hot-pages",
        "everybody looks at the same few pages while they change",
        (
            Crew(Shopper, 8, 1.0),
            Crew(Refiller, 10, 2.0),
            Crew(Editor, 6, 1.5),
            Crew(CatalogueAdmin, 4, 2.0),
            Crew(Returner, 6, 1.5),
            Crew(Onlooker, 4, 2.0),
        ),
        checks=EVERYTHING,
        shop=Shop(products=6),
        from_memory=True,
    ),
    Scenario("mixed", "a bit of everything, as on an ordinary day", MIXED, checks=EVERYTHING),
)
