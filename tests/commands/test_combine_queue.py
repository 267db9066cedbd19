"""The combiner by itself: what waits, what goes first, what is refused, and that a lone item waits for nothing."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from atelier.deadline import Deadline
from atelier.errors import OutcomeUnknownError, OverloadedError
from atelier.writes import combine
from atelier.writes.combine import Combiner, QueueLimits

pytestmark = [pytest.mark.anyio, pytest.mark.soak]

LIMITS = QueueLimits(waiting=100, lanes=1, largest_batch=16, target_s=60.0)


class Work:
    """Carries batches out when it is let go, and remembers them."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: Sequence[str]) -> Sequence[str | Exception]:
        self.batches.append(list(items))
        await self.gate.wait()
        return [ValueError(item) if item.startswith("bad") else item.upper() for item in items]


def soon(seconds: float = 10.0) -> Deadline:
    """A deadline from now."""
    return Deadline.after(seconds, time.monotonic)


async def until(condition) -> None:
    """Waits until something came true."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_lone_item_is_carried_out_at_once() -> None:
    """It waits for no company: some turns of the loop after it came it is under way, and no timer ends so soon."""
    work = Work()
    async with Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        for item in "abc":
            submitting = asyncio.create_task(combiner.submit(item, soon()))
            for _ in range(5):
                await asyncio.sleep(0)
            assert work.batches[-1] == [item]
            assert await submitting == item.upper()
    assert work.batches == [["a"], ["b"], ["c"]]


async def test_what_arrives_meanwhile_goes_together_in_arrival_order() -> None:
    """Batches form because the lane is busy; one bad item fails alone."""
    work = Work()
    work.gate.clear()
    async with Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        first = asyncio.create_task(combiner.submit("a", soon()))
        await until(lambda: work.batches)
        rest = [asyncio.create_task(combiner.submit(item, soon())) for item in ("b", "bad", "c")]
        await until(lambda: combiner.waiting == 3)
        work.gate.set()
        results = await asyncio.gather(first, *rest, return_exceptions=True)
    assert work.batches == [["a"], ["b", "bad", "c"]]
    assert [str(result) for result in results] == ["A", "B", "bad", "C"]


@pytest.fixture
def gathering_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that waits for those it has answered does so for longer than any test has."""
    monkeypatch.setattr(combine, "_GATHER_S", 600.0)
    monkeypatch.setattr(combine, "_PAUSE_S", 600.0)


@pytest.mark.usefixtures("gathering_for_long")
@pytest.mark.parametrize(("pause_s", "away_s"), [(600.0, 0.0), (0.2, 0.5)])
async def test_who_was_answered_together_is_carried_out_together_again(
    monkeypatch: pytest.MonkeyPatch, pause_s: float, away_s: float
) -> None:
    """They come back one by one, also after a while: the lane waits for the last of them, and not a moment longer."""
    monkeypatch.setattr(combine, "_PAUSE_S", pause_s)
    work = Work()
    work.gate.clear()

    async def come_back(turns: int) -> None:
        await combiner.submit(f"first{turns}", soon())
        await asyncio.sleep(away_s)
        for _ in range(20 * turns):
            await asyncio.sleep(0)
        await combiner.submit(f"again{turns}", soon())

    async with asyncio.timeout(10), Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        ahead = asyncio.create_task(combiner.submit("ahead", soon()))
        await until(lambda: work.batches)
        tasks = [asyncio.create_task(come_back(turns)) for turns in range(10)]
        await until(lambda: combiner.waiting == 10)
        work.gate.set()
        await asyncio.gather(ahead, *tasks)
    assert [len(batch) for batch in work.batches] == [1, 10, 10]


@pytest.mark.usefixtures("gathering_for_long")
async def test_no_more_are_waited_for_than_the_next_batch_takes() -> None:
    """A full batch goes at once, whoever else was answered."""
    work = Work()
    async with asyncio.timeout(10), Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        await asyncio.gather(*(combiner.submit(str(number), soon()) for number in range(16)))
        await asyncio.gather(*(combiner.submit(str(number), soon()) for number in range(32)))
    assert [len(batch) for batch in work.batches] == [16, 16, 16]


async def test_pause_says_that_the_others_do_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten were answered together, nine came back at once, and then nobody."""
    monkeypatch.setattr(combine, "_GATHER_S", 600.0)
    work = Work()
    async with asyncio.timeout(10), Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        await asyncio.gather(*(combiner.submit(str(number), soon()) for number in range(10)))
        await asyncio.gather(*(combiner.submit(str(number), soon()) for number in range(9)))
    assert [len(batch) for batch in work.batches] == [10, 9]


async def test_those_who_keep_coming_are_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred were answered together; others come instead of them, one a millisecond at most, without a pause."""
    monkeypatch.setattr(combine, "_GATHER_S", 0.05)
    monkeypatch.setattr(combine, "_PAUSE_S", 0.02)
    work, limits = Work(), QueueLimits(waiting=200, lanes=1, largest_batch=200, target_s=60.0)
    async with asyncio.timeout(10), Combiner(work, limits, clock=time.monotonic) as combiner:
        await asyncio.gather(*(combiner.submit(str(number), soon()) for number in range(200)))
        tasks = []
        while len(work.batches) == 1:
            tasks.append(asyncio.create_task(combiner.submit("other", soon())))
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)
    assert len(work.batches[1]) < 200


@pytest.mark.usefixtures("gathering_for_long")
async def test_who_has_left_is_not_waited_for() -> None:
    """One of ten hung up before the answer: the other nine are all."""
    work = Work()
    work.gate.clear()
    async with asyncio.timeout(10), Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        tasks = [asyncio.create_task(combiner.submit(str(number), soon())) for number in range(10)]
        await until(lambda: work.batches)
        tasks[0].cancel()
        await until(tasks[0].done)
        work.gate.set()
        await asyncio.gather(*tasks[1:])
        await asyncio.gather(*(combiner.submit(str(number), soon()) for number in range(9)))
    assert [len(batch) for batch in work.batches] == [10, 9]


@pytest.mark.usefixtures("gathering_for_long")
async def test_nobody_waits_for_bulk_to_come_back() -> None:
    """Ten of bulk were answered together: who stands in front of a screen comes, and is carried out at once."""
    work = Work()
    async with asyncio.timeout(10), Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        await asyncio.gather(*(combiner.submit(str(number), soon(), is_bulk=True) for number in range(10)))
        assert await combiner.submit("checkout", soon()) == "CHECKOUT"
    assert [len(batch) for batch in work.batches] == [10, 1]


@pytest.mark.usefixtures("gathering_for_long")
async def test_whom_another_lane_takes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A straggler calls the second lane; losing its patience, that takes nine of the ten whom the first one gathers."""
    monkeypatch.setattr(combine, "_PATIENCE_S", 0.5)
    work, limits = Work(), QueueLimits(waiting=100, lanes=2, largest_batch=16, target_s=60.0)
    work.gate.clear()
    async with asyncio.timeout(10), Combiner(work, limits, clock=time.monotonic) as combiner:
        first = [asyncio.create_task(combiner.submit(str(number), soon())) for number in range(10)]
        await until(lambda: work.batches)
        tasks = [asyncio.create_task(combiner.submit("straggler", soon()))]
        await until(lambda: combiner.waiting)
        work.gate.set()
        await asyncio.gather(*first)
        tasks += [asyncio.create_task(combiner.submit(str(number), soon())) for number in range(9)]
        await until(lambda: len(work.batches) == 2)
        await combiner.submit("the tenth", soon())
        await asyncio.gather(*tasks)
    assert [len(batch) for batch in work.batches] == [10, 10, 1]


@pytest.mark.usefixtures("gathering_for_long")
async def test_closing_waits_for_nobody_to_come_back() -> None:
    """Nor does anything that is queued."""
    work = Work()
    async with asyncio.timeout(10), Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        await asyncio.gather(*(combiner.submit(str(number), soon()) for number in range(10)))
        last = asyncio.create_task(combiner.submit("last", soon()))
        await until(lambda: combiner.waiting)
    assert await last == "LAST"


async def test_interactive_goes_before_bulk() -> None:
    """Whoever waits in front of a screen passes an import of a thousand lines."""
    work = Work()
    work.gate.clear()
    async with Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        tasks = [asyncio.create_task(combiner.submit("a", soon()))]
        await until(lambda: work.batches)
        tasks += [asyncio.create_task(combiner.submit(f"bulk{n}", soon(), is_bulk=True)) for n in range(2)]
        tasks += [asyncio.create_task(combiner.submit(f"quick{n}", soon())) for n in range(2)]
        await until(lambda: combiner.waiting == 4)
        work.gate.set()
        await asyncio.gather(*tasks)
    assert work.batches[1] == ["quick0", "quick1", "bulk0", "bulk1"]


async def test_full_queue_refuses_at_once() -> None:
    """503 overloaded without any wait, and what was queued is still carried out."""
    work = Work()
    work.gate.clear()
    limits = QueueLimits(waiting=2, lanes=1, largest_batch=16, target_s=60.0)
    async with Combiner(work, limits, clock=time.monotonic) as combiner:
        tasks = [asyncio.create_task(combiner.submit("a", soon()))]
        await until(lambda: work.batches)
        tasks += [asyncio.create_task(combiner.submit(item, soon())) for item in "bc"]
        await until(lambda: combiner.waiting == 2)
        with pytest.raises(OverloadedError):
            await combiner.submit("d", soon())
        work.gate.set()
        assert await asyncio.gather(*tasks) == ["A", "B", "C"]


async def test_deadline_tells_whether_anything_was_begun() -> None:
    """Still waiting: overloaded, and it never runs. Under way: the outcome is unknown."""
    work = Work()
    work.gate.clear()
    async with Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        begun = asyncio.create_task(combiner.submit("a", soon(0.2)))
        await until(lambda: work.batches)
        with pytest.raises(OverloadedError):
            await combiner.submit("b", soon(0.05))
        with pytest.raises(OutcomeUnknownError):
            await begun
        work.gate.set()
    assert work.batches == [["a"]]


async def test_item_that_was_told_that_nothing_was_done_is_not_taken_in_the_same_turn() -> None:
    """Its time is over while the lane is about to take what waits: "nothing was done" stays true."""
    work = Work()
    work.gate.clear()
    async with Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        begun = asyncio.create_task(combiner.submit("a", soon()))
        await until(lambda: work.batches)
        late = asyncio.create_task(combiner.submit("late", soon()))
        await until(lambda: combiner.waiting == 1)
        work.gate.set()  # the lane goes on before the one that waits is woken
        combiner._interactive[0].give_up()
        with pytest.raises(OverloadedError):
            await late
        assert await begun == "A"
        assert await combiner.submit("b", soon()) == "B"
    assert work.batches == [["a"], ["b"]]


async def test_bulk_leaves_room_for_those_that_somebody_waits_for() -> None:
    """A queue full of bulk: one bulk item more is refused, an interactive one gets in, and goes first."""
    work = Work()
    work.gate.clear()
    limits = QueueLimits(waiting=6, lanes=1, largest_batch=16, target_s=60.0)
    async with Combiner(work, limits, clock=time.monotonic) as combiner:
        tasks = [asyncio.create_task(combiner.submit("a", soon()))]
        await until(lambda: work.batches)
        bulk = [asyncio.create_task(combiner.submit(f"bulk{n}", soon(), is_bulk=True)) for n in range(6)]
        await until(lambda: combiner.waiting + sum(task.done() for task in bulk) == 6)
        tasks += [asyncio.create_task(combiner.submit(f"quick{n}", soon())) for n in range(3)]
        await until(lambda: combiner.waiting == 6)
        with pytest.raises(OverloadedError):
            await combiner.submit("quick3", soon())
        work.gate.set()
        await asyncio.gather(*tasks)
        answers = await asyncio.gather(*bulk, return_exceptions=True)
    assert work.batches[1] == ["quick0", "quick1", "quick2", "bulk0", "bulk1", "bulk2"]
    assert [type(answer) for answer in answers] == [str] * 3 + [OverloadedError] * 3


async def test_slow_batches_get_smaller_and_quick_full_ones_larger_again() -> None:
    """Halved as long as they take longer than their target, then a quarter more with every quick full one."""
    now = [0.0]
    sizes: list[int] = []

    async def work(items: Sequence[int]) -> Sequence[int]:
        sizes.append(len(items))
        now[0] += 1.0 if len(sizes) <= 3 else 0.001
        await asyncio.sleep(0)
        return items

    limits = QueueLimits(waiting=2000, lanes=1, largest_batch=256, target_s=0.5)
    async with Combiner(work, limits, clock=lambda: now[0]) as combiner:
        await asyncio.gather(*(combiner.submit(item, soon()) for item in range(2000)))
    assert sizes[:14] == [256, 128, 64, 32, 40, 50, 62, 77, 96, 120, 150, 187, 233, 256]


async def test_batches_stay_as_small_as_they_have_to_be() -> None:
    """Only large ones are slow: after the first few no batch is."""
    now = [0.0]
    sizes: list[int] = []

    async def work(items: Sequence[int]) -> Sequence[int]:
        sizes.append(len(items))
        now[0] += 1.0 if len(items) > 40 else 0.001
        await asyncio.sleep(0)
        return items

    limits = QueueLimits(waiting=1000, lanes=1, largest_batch=256, target_s=0.5)
    async with Combiner(work, limits, clock=lambda: now[0]) as combiner:
        await asyncio.gather(*(combiner.submit(item, soon()) for item in range(900)))
    assert sizes[0] == 256
    assert max(sizes[3:]) <= 64


async def test_closing_finishes_what_is_queued_and_takes_nothing_more() -> None:
    """A clean stop loses nobody."""
    work = Work()
    work.gate.clear()
    combiner = Combiner(work, LIMITS, clock=time.monotonic)
    async with combiner:
        tasks = [asyncio.create_task(combiner.submit(item, soon())) for item in "abc"]
        await until(lambda: work.batches)
        work.gate.set()
    assert [await task for task in tasks] == ["A", "B", "C"]
    with pytest.raises(OverloadedError):
        await combiner.submit("d", soon())


async def test_work_that_breaks_fails_its_batch_and_not_the_lane() -> None:
    """Nobody waits for ever, and the next batch is carried out."""
    calls = 0

    async def work(items: Sequence[str]) -> Sequence[str]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("broken")
        return items

    async with Combiner(work, LIMITS, clock=time.monotonic) as combiner:
        with pytest.raises(RuntimeError):
            await combiner.submit("a", soon())
        assert await combiner.submit("b", soon()) == "b"


async def test_batch_with_too_few_results_fails_and_not_the_lane() -> None:
    """Which of them is whose, nobody knows."""
    answers = [["only one"], ["a", "b"]]

    async def work(_items: Sequence[str]) -> Sequence[str]:
        return answers.pop(0)

    limits = QueueLimits(waiting=100, lanes=1, largest_batch=16, target_s=60.0)
    async with asyncio.timeout(10), Combiner(work, limits, clock=time.monotonic) as combiner:
        for expected in (RuntimeError, str):
            told = await asyncio.gather(*(combiner.submit(item, soon()) for item in "ab"), return_exceptions=True)
            assert [type(one) for one in told] == [expected] * 2


async def test_second_lane_helps_when_the_first_is_slow() -> None:
    """What waits is left to the first lane for a moment, so that batches are large; then it is carried out anyway."""
    work = Work()
    work.gate.clear()
    limits = QueueLimits(waiting=100, lanes=2, largest_batch=16, target_s=60.0)
    async with Combiner(work, limits, clock=time.monotonic) as combiner:
        tasks = [asyncio.create_task(combiner.submit("a", soon()))]
        await until(lambda: work.batches)
        tasks += [asyncio.create_task(combiner.submit(item, soon())) for item in "bc"]
        await until(lambda: combiner.waiting == 2)
        async with asyncio.timeout(5):
            while len(work.batches) < 2:
                await asyncio.sleep(0.001)
        work.gate.set()
        assert await asyncio.gather(*tasks) == ["A", "B", "C"]
    assert work.batches == [["a"], ["b", "c"]]
