"""The composition root: makes everything, in order, and closes it in the opposite order. Imports both sides."""

import asyncio
import gc
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

from litestar import Litestar
from litestar.types import ASGIApp, ControllerRouterHandler

from atelier.access.rate import RateLimit, RateLimiter
from atelier.access.verify import KeyVerifier
from atelier.documentation.openapi import operations_of, write_document
from atelier.documentation.routes import build_documentation
from atelier.logs import RequestLog, configure_logging
from atelier.operations import build_operations
from atelier.reads.asking import Asker
from atelier.reads.cache.answers import AnswerCache
from atelier.reads.cache.follow import Followers
from atelier.reads.executor import ReadExecutor
from atelier.reads.feed import Feed, FeedLimits, build_feed_handler
from atelier.reads.keys import KeyLookup
from atelier.reads.pools import ReadPools
from atelier.reads.responding import Responder
from atelier.reads.routes import Reads
from atelier.reads.routes import build_handlers as build_reads
from atelier.reads.shortcut import Shortcut
from atelier.reads.storefront import Storefront
from atelier.reads.tail import ChangeTail
from atelier.settings import Settings
from atelier.token import CausalToken, TokenKeys
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.sources import choose_source
from atelier.topology.state import ClusterSnapshot
from atelier.web.cors import Cors, Origins
from atelier.web.draining import RELIST, Draining
from atelier.web.edge import App, Edge
from atelier.web.guards import ask_for_key
from atelier.web.metrics import build_metrics, observe_nodes
from atelier.web.paths import Surface
from atelier.web.refusals import Refusals
from atelier.writes.policy import WritePolicy
from atelier.writes.routes import Writes, build_handlers
from atelier.writes.service import WriteService, utc_now
from atelier.writes.shortcut import CommandShortcut


def create_app(settings: Settings) -> Edge:
    """Makes the application of one process, for the role that the settings name. Does no I/O before its lifespan."""
    clock = time.monotonic
    draining = Draining()
    request_log = RequestLog(level=settings.web.log_level, on_terminal=sys.stderr.isatty())
    keys = TokenKeys(settings.token_keys)
    monitor = TopologyMonitor(settings, choose_source(settings), clock=clock)
    pools = ReadPools(settings, clock=clock)
    executor = ReadExecutor(monitor, pools, clock=clock, when_primary_full=settings.reads.when_primary_full)
    cache = AnswerCache(
        settings.reads.cache_bytes if settings.role != "writes" else 0,
        look=lambda: monitor.snapshot,
        as_of_s=monitor.as_of_s,
        clock=clock,
    )
    responder = Responder(settings, keys, Asker(settings, keys, clock=clock))
    readers_verifier = KeyVerifier(KeyLookup(settings, executor, clock=clock).find, clock=clock, now=utc_now)
    guards = [ask_for_key(readers_verifier)] if settings.web.operations == "keyed" else []
    nodes = observe_nodes(lambda: monitor.snapshot, executor.in_flight, pools.connections, clock=clock)
    service = (
        WriteService(monitor, settings, write_policy_of(settings), clock=clock) if settings.role != "reads" else None
    )
    observed = [nodes, cache.observe(), *([service.observe()] if service is not None else [])]
    routers: list[ControllerRouterHandler] = [
        build_operations(monitor, executor, settings, clock=clock, guards=guards, is_ending=lambda: draining.has_begun),
        build_metrics(observed, guards=guards),
        *build_documentation(write_document()),
    ]
    reads = Reads(Storefront(executor, cache), responder, readers_verifier)
    tail = ChangeTail(settings, monitor, clock=clock)
    if settings.role != "writes":
        routers.extend(build_reads(reads))
        routers.append(build_feed_handler(Feed(tail, monitor, keys, clock=clock, limits=FeedLimits())))

    if service is not None:
        verifier = KeyVerifier(service.look_up_key, clock=clock, now=utc_now)
        writes = Writes(service, verifier, RateLimiter(rate_limit_of(settings), clock=clock), keys)
        routers.extend(build_handlers(writes))

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(request_log.flush)
            await stack.enter_async_context(monitor)
            stack.push_async_callback(pools.close)
            await stack.enter_async_context(tail)
            await stack.enter_async_context(Followers(settings, monitor, cache, clock=clock))
            if service is not None:
                await stack.enter_async_context(service)
            draining.listen(tail.end)
            asyncio.get_running_loop().add_signal_handler(RELIST, monitor.relist_soon)
            yield

    refusals = Refusals(keys, lambda: present_token(monitor.snapshot))
    app: ASGIApp = Litestar(
        route_handlers=routers,
        lifespan=[lifespan],
        exception_handlers=refusals.handlers(),
        openapi_config=None,
        logging_config=None,
    )
    if service is not None:
        app = CommandShortcut(app, writes, refusals.answer)
    if settings.role != "writes":
        app = Shortcut(app, reads, refusals.answer)
    return Edge(
        cast("App", app),
        surface=Surface(operations_of()),
        cors=Cors(Origins(settings.web.read_origins), Origins(settings.web.command_origins)),
        clock=clock,
        tell=request_log.tell if settings.web.logs_requests else None,
        is_ending=lambda: draining.has_begun,
    )


def write_policy_of(settings: Settings) -> WritePolicy:
    """The writing side's own bounds, with what the settings say of them."""
    commands = settings.commands
    return WritePolicy(
        lanes=commands.lanes, largest_batch=commands.batch, keys_kept_s=commands.keys_kept_s, quorum=settings.quorum
    )


def rate_limit_of(settings: Settings) -> RateLimit | None:
    """The bound on one API key; None where none is set."""
    limits = settings.commands
    if not limits.rate_per_s:
        return None
    return RateLimit(limits.rate_per_s, limits.rate_burst, settings.workers)


def present_token(snapshot: ClusterSnapshot) -> CausalToken | None:
    """Where the primary stood when it was last observed: what a client goes on with whose history is lost.

    While none is observed, where the replica stands that has replayed most of its history. None when there is neither.
    """
    if snapshot.history is None:
        return None
    seen = [node.observation for node in (snapshot.primary, *snapshot.replicas) if node and node.observation]
    if not seen:
        return None
    chosen = seen[0] if snapshot.primary is not None else max(seen, key=lambda one: one.replayed_lsn)
    return CausalToken(
        snapshot.history.system_id, snapshot.history.timeline, chosen.replayed_lsn, minted_by_replica=chosen.in_recovery
    )


def create_app_from_environment() -> Edge:
    """What the server calls in each worker process."""
    settings = Settings.from_environment(os.environ)
    configure_logging(level=settings.web.log_level, on_terminal=sys.stderr.isatty())
    app = create_app(settings)
    # What is there now stays: no collection has to look at it again. What a request makes goes when nobody refers to it
    # any more; looking for circles among it after every 700 objects, as by default, is a twentieth of a command.
    gc.collect()
    gc.freeze()
    gc.set_threshold(25_000, 20, 50)
    return app
