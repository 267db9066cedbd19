"""For `locust -f loadtest/locustfile.py`: the lab's users behind Locust's own web page, headless, or on many machines.

Every process makes a small shop of its own through the API, so workers need nothing but the address and a key. With
`--history FILE` every process writes each test to FILE.<process>.<test>; `python -m loadtest check FILE.*`
judges them as one, if the processes ran on one machine, whose clocks agree.
"""

import itertools
import logging
import os
import random
import secrets
from pathlib import Path
from typing import Any

import gevent.hub
from locust import User, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner

from loadtest.checkers.registry import EXIT_UNKNOWN
from loadtest.client import Session
from loadtest.clock import start_clock
from loadtest.commands import adjust
from loadtest.final import Surveyor
from loadtest.metrics import Meter
from loadtest.recorder import Recorder
from loadtest.transport import PlainTransport
from loadtest.users import shoppers, staff
from loadtest.users.base import LabUser, Stage
from loadtest.watcher import Watcher as FeedWatcher
from loadtest.world import SetUpError, Shop, World, make_world

# Locust tells of it in one line, which is enough.
gevent.hub.Hub.NOT_ERROR = (*gevent.hub.Hub.NOT_ERROR, StopTest)

_OPEN_S = 15.0
# Locust lets a worker sleep for so long after each test.
_STOP_S = 8.0
_HEAR_S = 5.0
_tests = itertools.count(1)
log = logging.getLogger(__name__)


class Shopper(shoppers.Shopper):
    """Looks at product pages."""

    weight = 6


class Checkout(shoppers.Checkout):
    """Buys."""

    weight = 3


class Warehouse(staff.Warehouse):
    """Puts in, takes out, counts."""

    weight = 2
    counts = True


class CatalogueAdmin(staff.CatalogueAdmin):
    """Rewrites products."""

    weight = 1


class Refiller(staff.Refiller):
    """Puts in one piece at a time and looks at the page."""

    weight = 1


class Editor(staff.Editor):
    """Writes on the board and looks at the list."""

    weight = 1


class Watcher(User):
    """Follows the change feed; one a process is enough."""

    fixed_count = 1
    wait_time = constant(1)

    def on_start(self) -> None:
        """Opens the feed."""
        stage = LabUser.stage
        self._session = open_session(stage, "canary", self.host or "")
        self._watcher = FeedWatcher(f"{stage.prefix}watcher", self.host or "", stage.recorder, clock=stage.clock)
        self._watcher.start(within_s=_OPEN_S)

    def on_stop(self) -> None:
        """Makes one last change. When the feed tells of that, it has told of all that was done before."""
        stage = LabUser.stage
        canary, asked_s = stage.world.canary, stage.clock()
        answer = self._session.command(adjust([(canary, 1)]))
        version = answer.json()["lines"][0]["version"] if answer.is_ok else 0
        if version and self._watcher.wait_for(f"sku:{canary}", version, within_s=_HEAR_S):
            self._watcher.close(until_s=asked_s)
        else:
            log.warning("%s was not told of the last change within %g s", self._watcher.name, _HEAR_S)
            self._watcher.leave()

    @task
    def listen(self) -> None:
        """What comes is recorded where it comes."""


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """What the lab needs to know beside Locust's own options."""
    # Not on the web page, where everybody who sees the page could read it.
    parser.add_argument(
        "--api-key", env_var="LOADTEST_API_KEY", default="", include_in_web_ui=False, help="a key with all scopes"
    )
    parser.add_argument("--arrivals", type=float, default=1.0, help="of each user, a second")
    parser.add_argument("--products", type=int, default=20, help="of the shop that each process makes")
    parser.add_argument(
        "--history", default="", help="write what happens to this file, with the numbers of process and test behind it"
    )
    parser.add_argument("--seed", type=int, default=1, help="of every chance")


@events.test_start.add_listener
def open_stage(environment: Environment, **_: Any) -> None:
    """Makes the shop; the master makes none."""
    if isinstance(environment.runner, MasterRunner):
        return
    options = environment.parsed_options
    number, test = getattr(environment.runner, "worker_index", 0), next(_tests)
    history = Path(f"{options.history}.{number}.{test}") if options.history else None
    # All processes of one machine count from the same moment.
    clock, recorder = start_clock(0.0), Recorder(history, Meter())
    prefix = f"{number}-{os.getpid()}-{test}/"
    stage = Stage(
        World((), (), 0, 0),
        recorder,
        clock=clock,
        api_key=options.api_key,
        seed=options.seed,
        run_id=secrets.token_hex(4),
        prefix=prefix,
    )
    try:
        session = open_session(stage, "setup", environment.host or "")
        stage.world = make_world(session, Shop(products=options.products), hot=8)
    except SetUpError as error:
        recorder.close()
        environment.process_exit_code = EXIT_UNKNOWN
        raise StopTest(str(error)) from None
    LabUser.stage = stage
    LabUser.rate_per_s = options.arrivals


def open_session(stage: Stage, name: str, host: str) -> Session:
    """A session beside those of the users."""
    return Session(
        f"{stage.prefix}{name}",
        PlainTransport(host),
        api_key=stage.api_key,
        recorder=stage.recorder,
        clock=stage.clock,
        rng=random.Random(f"{stage.seed}/{stage.prefix}{name}"),
        run_id=stage.run_id,
    )


@events.test_stopping.add_listener
def say_goodbye(environment: Environment, **_: Any) -> None:
    """Lets every user end its errand."""
    environment.stop_timeout = environment.stop_timeout or _STOP_S


@events.test_stop.add_listener
def close_stage(environment: Environment, **_: Any) -> None:
    """When the last user is gone: reads the final state into the history, if one is kept, and ends it."""
    if isinstance(environment.runner, MasterRunner):
        return
    stage = getattr(LabUser, "stage", None)
    if stage is None:
        return
    world = stage.world
    if environment.parsed_options.history:
        surveyor = Surveyor(environment.host or "", stage.api_key, stage.recorder, stage.clock)
        surveyor.survey(reservations=stage.reservations, skus=world.all_skus, products=world.all_products)
    stage.recorder.close()
    del LabUser.stage
