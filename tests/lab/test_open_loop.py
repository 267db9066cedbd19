"""Arrivals do not wait for answers, so a stall shows in every arrival that it held up."""

# ruff: noqa: E501 - tables and scripts keep their lines

import json
import random
import subprocess
import sys
import time

import pytest

from loadtest.history.record import Op
from loadtest.metrics import Histogram, Meter
from loadtest.world import IdChooser
from tests.lab.stub import reply, serving

STALL_S = 1.0
SCRIPT = """
import sys, json
import locust
import gevent
from locust import task
from locust.env import Environment
from loadtest.clock import start_clock
from loadtest.metrics import Meter
from loadtest.recorder import Recorder
from loadtest.users.base import LabUser, Stage
from loadtest.world import World

class Visitor(LabUser):
    rate_per_s = 25.0
    fixed_count = 1

    @task
    def visit(self):
        self.session.get("/x", "/x")

meter = Meter()
Visitor.stage = Stage(World((), (), 0, 0), Recorder(None, meter), clock=start_clock(), api_key="k", seed=4, run_id="run")
environment = Environment(user_classes=[Visitor], host=sys.argv[1], stop_timeout=5)
runner = environment.create_local_runner()
runner.start(1, spawn_rate=1)
gevent.sleep(4)
runner.quit()
slow = lambda histogram: sum(n for b, n in histogram.buckets.items() if 0.1 * 1.1 ** b > 250)
print(json.dumps({"all": meter.all.latency.count, "open": slow(meter.all.latency), "closed": slow(meter.all.closed_loop),
                  "greatest_ms": meter.all.latency.greatest_ms, "locust": environment.stats.total.num_requests}))
"""


def test_stall_shows_in_every_arrival_that_it_held_up():
    """One answer takes a second: one request is slow by the closed loop, all that came in that second by the open one."""
    asked = []

    def answer(*_):
        asked.append(1)
        if len(asked) == 20:
            time.sleep(STALL_S)
        return reply(200, {})

    with serving(answer) as stub:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, stub.url], capture_output=True, text=True, timeout=60, check=True
        )
    figures = json.loads(done.stdout)
    assert figures["all"] == figures["locust"] > 50
    assert figures["closed"] <= 3
    assert figures["open"] >= 10
    assert figures["greatest_ms"] >= STALL_S * 1000


def test_latency_counts_from_the_intended_start():
    """A request that was sent late counts as late, in the second in which it was due."""
    meter = Meter()
    meter.add(Op(1, "a", "read", 5.0, 5.1, intended_s=3.0))
    assert meter.seconds[3].latency.percentile_ms(50) == pytest.approx(2100, rel=0.06)
    assert meter.seconds[3].closed_loop.percentile_ms(50) == pytest.approx(100, rel=0.06)
    assert (meter.seconds[5].reads, meter.seconds[3].reads) == (1, 0)


def test_percentiles_are_right_to_within_five_per_cent():
    """Over five orders of magnitude, against sorting."""
    rng = random.Random(2)
    values = [10 ** rng.uniform(-1, 4) for _ in range(20_000)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for percent in (1, 50, 95, 99, 99.9):
        exact = sorted(values)[int(len(values) * percent / 100) - 1]
        assert histogram.percentile_ms(percent) == pytest.approx(exact, rel=0.06)
    assert histogram.percentile_ms(100) <= max(values)
    assert Histogram().percentile_ms(50) is None


def test_ids_follow_zipf_or_the_last_tenth():
    """The first is wanted twice as often as the second; or the newest tenth alone, evenly."""
    rng = random.Random(3)
    ids = list(range(1, 101))
    zipf = [IdChooser(ids).choose(rng) for _ in range(20_000)]
    assert zipf.count(1) / zipf.count(2) == pytest.approx(2, rel=0.15)
    assert set(zipf) <= set(ids)
    last = [IdChooser(ids, way="last-tenth").choose(rng) for _ in range(5_000)]
    assert set(last) == set(range(91, 101))
