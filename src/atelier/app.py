"""The composition root: makes everything, in order, and closes it in the opposite order. Imports both sides."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException

from atelier.access.rate import RateLimiter
from atelier.access.verify import KeyVerifier
from atelier.errors import AtelierError
from atelier.operations import build_operations
from atelier.problems import MEDIA_TYPE, ProblemError, to_problem
from atelier.reads.asking import Asker
from atelier.reads.executor import ReadExecutor
from atelier.reads.pools import ReadPools
from atelier.reads.responding import Responder
from atelier.reads.routes import Reads
from atelier.reads.routes import build_router as build_reads
from atelier.reads.storefront import Storefront
from atelier.settings import Settings
from atelier.token import TokenKeys
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.sources import StaticNodes
from atelier.writes.policy import WritePolicy
from atelier.writes.routes import Writes, build_handlers
from atelier.writes.service import WriteService, utc_now

log = structlog.get_logger(__name__)


def create_app(settings: Settings) -> Litestar:
    """Makes the application of one process, for the role that the settings name. Does no I/O before its lifespan."""
    clock = time.monotonic
    keys = TokenKeys(settings.token_keys)
    monitor = TopologyMonitor(settings, StaticNodes(settings.nodes), clock=clock)
    pools = ReadPools(settings)
    executor = ReadExecutor(monitor, pools, clock=clock)
    responder = Responder(settings, keys, Asker(settings, keys, clock=clock))
    routers = [build_operations(monitor, executor, settings, clock=clock)]
    routers.append(build_reads(Reads(Storefront(executor), responder)))

    service = WriteService(monitor, settings, WritePolicy(), clock=clock) if settings.role != "reads" else None
    if service is not None:
        verifier = KeyVerifier(service.look_up_key, clock=clock, now=utc_now)
        routers.extend(build_handlers(Writes(service, verifier, RateLimiter(None, clock=clock), keys)))

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(monitor)
            stack.push_async_callback(pools.close)
            if service is not None:
                await stack.enter_async_context(service)
            yield

    return Litestar(
        route_handlers=routers,
        lifespan=[lifespan],
        exception_handlers={AtelierError: refuse, HTTPException: refuse_http, Exception: fail},
        openapi_config=None,
    )


def create_app_from_environment() -> Litestar:
    """What the server calls in each worker process."""
    return create_app(Settings.from_environment(os.environ))


def refuse(request: Request, error: AtelierError) -> Response[bytes]:
    """A refusal of ours, as a problem document."""
    problem = to_problem(error)
    return fail(request, error) if problem is None else _write(request, problem)


def refuse_http(request: Request, error: HTTPException) -> Response[bytes]:
    """A refusal of the framework's, in the same form."""
    names = {404: "not-found", 405: "method-not-allowed", 413: "payload-too-large", 415: "unsupported-media-type"}
    if error.status_code >= 500:
        return fail(request, error)
    name = names.get(error.status_code, "invalid-request")
    return _write(request, ProblemError(name, error.detail, headers=error.headers))


def fail(request: Request, error: Exception) -> Response[bytes]:
    """A mistake of ours: logged with everything, answered with nothing but that it happened."""
    log.error("request_failed", path=request.url.path, exc_info=error)
    body = b'{"type":"about:blank","title":"Internal Server Error","status":500}'
    return Response(body, status_code=500, media_type=MEDIA_TYPE)


def _write(request: Request, problem: ProblemError) -> Response[bytes]:
    return Response(
        problem.body(request.url.path),
        status_code=problem.type.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )
