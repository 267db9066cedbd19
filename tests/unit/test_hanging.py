"""A test that hangs fails, and the run goes on."""

import asyncio

import pytest

from tests.hanging import bound

pytestmark = pytest.mark.anyio


async def hang() -> None:
    """Waits for what never comes."""
    await asyncio.Event().wait()


async def test_that_waits_for_ever_is_ended() -> None:
    """By an error of its own, whatever it waits for."""
    with pytest.raises(TimeoutError):
        await bound(hang, within_s=0.01)()


async def test_that_is_a_coroutine_has_such_a_bound(request: pytest.FixtureRequest) -> None:
    """This one, for one."""
    assert request.node.obj.__wrapped__.__code__.co_filename == __file__
