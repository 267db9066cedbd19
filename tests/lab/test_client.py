"""The lab's client: tokens, repeats, and what it writes down of each answer."""

import random
from contextlib import ExitStack, closing

import pytest

from loadtest.answers import classify
from loadtest.client import CAUSAL, EVENTUAL, STRONG, Consistency, Patience, Session
from loadtest.commands import adjust, confirm, count, reserve, update_product
from loadtest.history.record import Line, read_op
from loadtest.metrics import Meter
from loadtest.recorder import Recorder
from loadtest.tally import Board, Tally, write_slogan
from loadtest.transport import Answer, PlainTransport
from tests.lab.stub import refuse, reply, serving

STOCK = {"sku_id": 7, "on_hand": 9, "reserved": 2, "available": 7, "version": 4}


class Bench:
    """A session over a stub, and what it recorded."""

    def __init__(self, url, path):
        self.path = path
        self.meter = Meter()
        self.recorder = Recorder(path, self.meter)
        self.now_s = 0.0
        self.transport = PlainTransport(url)
        self.session = Session(
            "ann", self.transport, api_key="key",
            recorder=self.recorder, clock=self.tick, rng=random.Random(1), run_id="run",
            patience=Patience(attempts=4), sleep=lambda _: None,
        )  # fmt: skip

    def tick(self):
        self.now_s += 1.0
        return self.now_s

    def close(self):
        self.transport.close()
        self.recorder.close()

    @property
    def ops(self):
        self.close()
        return [read_op(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def bench(tmp_path):
    """Makes a session over what a stub answers, one answer after the other; the last one for ever."""

    def make(*answers):
        left = list(answers)
        stub = serving(lambda *_: left.pop(0) if len(left) > 1 else left[0])
        running = stack.enter_context(stub)
        made = stack.enter_context(closing(Bench(running.url, tmp_path / "history.jsonl")))
        made.stub = running
        return made

    with ExitStack() as stack:
        yield make


def test_token_of_an_answer_goes_with_the_next_read(bench):
    """What came back is sent back, but not with a read that may be old."""
    made = bench(reply(200, STOCK, etag='"4"', atelier_token="one", atelier_served_by="pg2", atelier_lag_ms="3"))
    made.session.read_stock(7)
    made.session.read_stock(7)
    made.session.read_stock(7, EVENTUAL)
    sent = [headers.get("atelier-token") for _, _, headers, _ in made.stub.seen]
    assert sent == [None, "one", None]
    first, second, third = made.ops
    assert (first.tokened, second.tokened, third.tokened) == (False, True, False)
    assert first.lines == (Line("sku:7", 4, 9, 2),)
    assert (first.node, first.lag_ms, second.token_sent) == ("pg2", 3.0, first.token_got)


def test_quantity_on_a_page_tells_the_version_where_every_command_adds_one(bench):
    """Version 4 with 10 pieces and one more each time: 13 pieces are version 7; what is not shown has version 0."""
    page = {"product_id": "3", "results": [{"style_id": 1, "skus": {"7": {"quantity": 13, "size": "M"}}}]}
    made = bench(reply(200, page), refuse(404, "not-found"))
    tallies = (Tally(3, 7, 4, 10), Tally(3, 8, 2, 10))
    made.session.read_styles(3, tallies)
    made.session.read_styles(3, tallies, STRONG)
    shown, gone = made.ops
    assert shown.lines == (Line("sku:7", 7), Line("sku:8", 0))
    assert (gone.outcome, gone.mode, gone.lines) == ("ok", "strong", (Line("sku:7", 0), Line("sku:8", 0)))
    assert made.stub.seen[0][1] == "/products/3/styles"


def test_slogan_in_the_list_tells_the_version_that_was_written_into_it(bench):
    """Version 8 says so; what was never written on tells nothing; what is not on its page is not there."""
    board = Board(3, 9, 2, 10)
    pages = [
        [{"id": 2, "slogan": "x"}, {"id": 3, "slogan": slogan}] for slogan in (write_slogan(8), "Made to be tested")
    ]
    made = bench(reply(200, pages[0]), reply(200, pages[1]), reply(200, []))
    for _ in range(3):
        made.session.read_list(board)
    assert [op.lines for op in made.ops] == [(Line("product:3", 8),), (), (Line("product:3", 0),)]
    assert made.stub.seen[0][1] == "/products?page=2&count=10"


def test_read_says_what_it_asks_for(bench):
    """Each consistency is a header of the contract, and a mode of the history."""
    made = bench(reply(200, STOCK, atelier_lag_ms="unknown"))
    for consistency in (CAUSAL, STRONG, Consistency("bounded", 250)):
        made.session.read_stock(7, consistency)
    assert [headers["atelier-consistency"] for _, _, headers, _ in made.stub.seen] == [
        "causal",
        "strong",
        "bounded; max-lag-ms=250",
    ]
    assert [(op.mode, op.max_lag_ms, op.lag_ms) for op in made.ops] == [
        ("causal", None, None),
        ("strong", None, None),
        ("bounded", 250, None),
    ]


def test_what_is_not_found_has_version_zero(bench):
    """A 404 is a fact about a key, no failure."""
    made = bench(refuse(404, "not-found"))
    made.session.read_product(3)
    (op,) = made.ops
    assert (op.outcome, op.lines) == ("ok", (Line("product:3", 0),))
    assert not made.meter.all.errors


def test_command_of_unknown_outcome_is_sent_again_under_its_key(bench):
    """Every attempt is on record; what may have been done is info, never a failure."""
    made = bench(
        refuse(503, "outcome-unknown"),
        refuse(409, "idempotency-in-flight"),
        reply(200, {"lines": [STOCK]}, idempotency_replayed="true"),
    )
    made.session.command(adjust([(7, -1)]))
    keys = {headers["idempotency-key"] for _, _, headers, _ in made.stub.seen}
    assert len(keys) == 1
    assert [(op.outcome, op.replayed, op.command) for op in made.ops] == [
        ("info", False, *keys), ("info", False, *keys), ("ok", True, *keys),
    ]  # fmt: skip
    assert made.ops[-1].lines == (Line("sku:7", 4, 9, 2, -1),)
    assert made.ops[0].lines == (Line("sku:7", delta=-1),)


def test_refused_command_is_not_sent_again(bench):
    """A refusal by the rules of the shop is an answer."""
    made = bench(refuse(409, "insufficient-stock"))
    made.session.command(reserve([(7, 3)], 60))
    (op,) = made.ops
    assert (op.outcome, op.problem, op.ttl_s, op.lines) == (
        "refused",
        "insufficient-stock",
        60,
        (Line("sku:7", held=3),),
    )
    assert (made.meter.all.refused, made.meter.all.errors.total()) == (1, 0)


def test_session_begins_a_new_life_where_history_was_lost(bench):
    """Nothing that it saw before counts any more."""
    made = bench(refuse(409, "history-lost"), reply(200, STOCK))
    made.session.read_stock(7)
    made.session.read_stock(7)
    assert [(op.session, op.outcome) for op in made.ops] == [("ann", "refused"), ("ann#2", "ok")]
    assert made.meter.all.errors == {"history-lost": 1}


def test_count_that_changes_nothing_says_nothing(bench):
    """It makes no version, so the history must not take its answer for one."""
    made = bench(reply(200, STOCK))
    made.session.command(count(7, 9, 4))
    made.session.command(count(7, 9, 3))
    assert [op.lines for op in made.ops] == [(), (Line("sku:7", 4, 9, 2, None),)]


def test_commands_tell_what_they_change(bench):
    """The history knows each effect without asking the service."""
    told = {"reservation_id": 12, "state": "confirmed", "lines": []}
    made = bench(reply(200, told), reply(200, {"id": 3}, etag='"8"'))
    made.session.command(confirm("12", [(7, 2)]))
    made.session.command(update_product(3, {"slogan": "x"}))
    settled, updated = made.ops
    assert settled.lines == (Line("sku:7", delta=-2, held=-2), Line("reservation:12", 2))
    assert settled.reservation == "12"
    assert updated.lines == (Line("product:3", 8),)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(201), "ok"),
        (Answer(0, never_sent=True), "fail"),
        (Answer(0), "info"),
        (Answer(500), "info"),
        (Answer(502), "info"),
        (Answer(503, body=b'{"type":"/problems/overloaded"}'), "refused"),
        (Answer(503, body=b'{"type":"/problems/primary-unavailable"}'), "info"),
        (Answer(409, body=b'{"type":"/problems/idempotency-in-flight"}'), "info"),
        (Answer(409, body=b'{"type":"/problems/insufficient-stock"}'), "refused"),
        (Answer(412), "refused"),
        (Answer(404), "refused"),
    ],
)
def test_outcome_is_certain_or_info(answer, outcome):
    """Only what the contract calls not done is refused."""
    assert classify(answer) == outcome


def test_connection_that_breaks_leaves_the_outcome_open(tmp_path):
    """No answer is no refusal; a connection that was never made carried nothing."""

    def hang_up(handler, _):
        handler.connection.close()
        raise OSError("gone")

    with serving(hang_up) as stub:
        made = Bench(stub.url, tmp_path / "history.jsonl")
        made.session.command(adjust([(7, -1)]))
    made.session.command(adjust([(7, -1)]))
    assert [op.outcome for op in made.ops] == ["info"] * 4 + ["fail"] * 4
    assert set(made.meter.all.errors) == {"no answer", "refused connection"}


def test_runs_of_the_same_seed_do_not_meet_under_one_key(bench):
    """The seed decides what is done; the run decides under which keys."""
    made = bench(refuse(422, "idempotency-conflict"))
    made.session.command(adjust([(7, -1)]))
    (op,) = made.ops
    assert op.command.startswith("lab-run-")
    assert made.meter.all.errors == {"idempotency-conflict": 1}
