"""What breaks things: the TCP proxy, the sabotage proxy, and the timeline."""

import itertools
import random
import threading
import time

import pytest

from loadtest.clock import start_clock
from loadtest.faults.tcp_proxy import TcpProxy, Weather
from loadtest.faults.timeline import Fault, Timeline
from loadtest.metrics import Meter
from loadtest.recorder import Recorder
from loadtest.sabotage.proxy import MALICE, ReorderEvents, SabotageProxy
from loadtest.sabotage.registry import SABOTAGES
from loadtest.sabotage.service import IN_SERVICE
from loadtest.sabotage.tamper import TAMPERS
from loadtest.transport import PlainTransport, Request
from loadtest.watcher import Watcher, read_events
from tests.lab.stub import reply, serving, wait_until


def get(url, path="/x", **headers):
    """One request on a connection of its own."""
    transport = PlainTransport(url, timeout_s=5)
    try:
        return transport.send(Request("GET", path, path, {k.replace("_", "-"): v for k, v in headers.items()}))
    finally:
        transport.close()


def post(url, path, key):
    """One command."""
    transport = PlainTransport(url, timeout_s=5)
    try:
        return transport.send(Request("POST", path, path, {"Idempotency-Key": key}, b"{}"))
    finally:
        transport.close()


@pytest.fixture
def counting():
    """A stub that answers with how often it was asked."""
    numbers = itertools.count(1)
    with serving(lambda *_: reply(200, next(numbers))) as stub:
        yield stub


@pytest.fixture
def tcp(counting):
    """A TCP proxy before it."""
    proxy = TcpProxy([counting.url], seed=1)
    yield proxy
    proxy.close()


def test_tcp_proxy_passes_everything_on(tcp):
    """In fair weather it does nothing."""
    assert [get(tcp.url).json() for _ in range(5)] == [1, 2, 3, 4, 5]


def test_tcp_proxy_slows_both_directions_down(tcp):
    """A delay is added to the request and to the answer."""
    tcp.weather = Weather(delay_ms=100)
    began_s = time.monotonic()
    assert get(tcp.url).is_ok
    assert time.monotonic() - began_s >= 0.2


def test_tcp_proxy_cuts_before_and_behind_the_service(tcp, counting):
    """Some requests are lost before they are done, some are done without an answer: a client cannot tell."""
    tcp.weather = Weather(cut_chance=0.5)
    answered = sum(get(tcp.url).is_ok for _ in range(80))
    assert tcp.cuts > 0
    wait_until(lambda: len(counting.seen) > answered)
    assert answered < len(counting.seen) < 80


def test_tcp_proxy_goes_on_to_the_next_target(counting):
    """A target that takes no connection is passed over."""
    proxy = TcpProxy(["http://127.0.0.1:9", counting.url])
    try:
        assert all(get(proxy.url).is_ok for _ in range(4))
        proxy.weather = Weather(refuses=True)
        assert get(proxy.url).status == 0
    finally:
        proxy.close()


@pytest.fixture
def sabotaged(counting):
    """Makes a sabotage proxy before the stub."""
    proxies = []

    def make(name, **options):
        malice = MALICE[name](random.Random(1))
        for option, value in options.items():
            setattr(malice, option, value)
        proxies.append(SabotageProxy(counting.url, malice))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


def test_stripped_tokens_do_not_arrive(sabotaged, counting):
    """The service is asked as if the client knew nothing."""
    get(sabotaged("strip-tokens").url, Atelier_Token="abc", Accept="text/plain")
    (_, _, headers, _) = counting.seen[0]
    assert "atelier-token" not in headers
    assert headers["accept"] == "text/plain"


def test_changed_keys_make_a_retry_a_new_command(sabotaged, counting):
    """The first attempt is carried out without an answer; the next one arrives under another key."""
    proxy = sabotaged("change-keys")
    for number in range(30):
        if not post(proxy.url, "/inventory/adjustments", f"k{number}").status:
            assert post(proxy.url, "/inventory/adjustments", f"k{number}").is_ok
    keys = [headers["idempotency-key"] for _, _, headers, _ in counting.seen]
    changed = [key for key in keys if key.endswith("-anew")]
    assert changed
    assert {key.removesuffix("-anew") for key in changed} <= set(keys)


def test_commands_sent_twice_have_two_keys(sabotaged, counting):
    """The client gets the first answer and knows of one."""
    proxy = sabotaged("send-twice")
    answers = [post(proxy.url, "/inventory/adjustments", f"k{number}").status for number in range(30)]
    keys = [headers["idempotency-key"] for _, _, headers, _ in counting.seen]
    assert answers == [200] * 30
    assert len(keys) == len(set(keys)) > 30


@pytest.mark.parametrize(
    ("name", "mode", "other"), [("lagging-node", "causal", "strong"), ("deposed-node", "strong", "causal")]
)
def test_answers_of_the_past_come_again(sabotaged, name, mode, other):
    """A read of that kind gets what was answered before; other kinds are fresh."""
    proxy = sabotaged(name, chance=1.0, age_s=0.0)
    first = get(proxy.url, Atelier_Consistency=mode).json()
    assert get(proxy.url, Atelier_Consistency=mode).json() == first
    assert get(proxy.url, Atelier_Consistency=other).json() != first


def test_cache_without_invalidation_answers_from_memory_until_it_is_too_old(sabotaged, counting):
    """Pages of the shop alone, whatever the token; strong reads and everything else are passed on."""
    proxy = sabotaged("stale-cache", keep_s=3600.0)
    first = get(proxy.url, "/products/1").json()
    assert get(proxy.url, "/products/1", Atelier_Token="abc").json() == first
    assert get(proxy.url, "/products/1", Atelier_Consistency="strong").json() != first
    assert get(proxy.url, "/products/1/styles").json() != first
    assert get(proxy.url, "/inventory/1").json() != get(proxy.url, "/inventory/1").json()
    assert get(proxy.url, "/products/1").json() == first
    hasty = sabotaged("stale-cache", keep_s=0.0)
    assert get(hasty.url, "/products/1").json() != get(hasty.url, "/products/1").json()


def stream(handler, _):
    """A feed of fifty events; then it ends."""
    handler.close_connection = True
    handler.wfile.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: follows 0.x\n\n"
    )
    after = int(handler.headers.get("Last-Event-ID", "0.x").partition(".")[0])
    for n in range(after + 1, min(after + 20, 50) + 1):
        handler.wfile.write(b'id: %d.x\nevent: stock\ndata: {"sku_id":7,"version":%d}\n\n' % (n, n))
    raise OSError("the end")


def follow(url, tmp_path, name="w"):
    """What a watcher is told of fifty events, and what it wrote down."""
    recorder = Recorder(tmp_path / name, Meter())
    watcher = Watcher(name, url, recorder, clock=start_clock())
    assert watcher.start(within_s=5)
    complete = watcher.wait_for("sku:7", 50, within_s=10)
    watcher.close()
    recorder.close()
    from loadtest.history.record import read_op

    return complete, [read_op(line) for line in (tmp_path / name).read_text().splitlines()]


def test_watcher_goes_on_where_its_stream_ended(tmp_path):
    """Every stream breaks after twenty events; nothing is missing and nothing comes twice."""
    with serving(stream) as stub:
        complete, ops = follow(stub.url, tmp_path)
    assert complete
    assert [op.lines[0].version for op in ops if op.lines] == list(range(1, 51))
    assert [op.state for op in ops if op.state] == ["open", "closed"]


@pytest.mark.parametrize("name", ["drop-events", "reorder-events"])
def test_bent_feeds_reach_the_watcher_bent(name, tmp_path):
    """Events are left out, or come in another order."""
    with serving(stream) as stub:
        proxy = SabotageProxy(stub.url, MALICE[name](random.Random(3)))
        try:
            _, ops = follow(proxy.url, tmp_path)
        finally:
            proxy.close()
    versions = [op.lines[0].version for op in ops if op.lines]
    assert versions != list(range(1, 51))
    assert (sorted(versions) == versions) == (name == "drop-events")


def test_comments_and_unknown_fields_of_a_stream_are_understood():
    """An event ends with an empty line; a comment stands alone; a carriage return is no part of a value."""
    lines = [b": hello\r\n", b"\r\n", b"id:7\r\n", b"event: stock\r\n", b"data: {}\r\n", b"\r\n", b"id: 8\n"]
    assert list(read_events(iter(lines))) == [{"comment": "hello"}, {"id": "7", "event": "stock", "data": "{}"}]


def test_reordering_loses_no_event():
    """Only the order is other."""
    events = [b"data: %d\n\n" % n for n in range(200)]
    bent = list(ReorderEvents(random.Random(1)).bend_events(iter(events)))
    assert bent != events
    assert len(set(events) - set(bent)) <= 1


def test_every_sabotage_is_named_with_its_catcher():
    """The list that people see holds all that the proxy, a process of the service and the tampering can do."""
    assert set(SABOTAGES) == set(MALICE) | set(IN_SERVICE) | set(TAMPERS)
    assert {name for name, each in SABOTAGES.items() if each.in_service} == set(IN_SERVICE)
    assert {name for name, each in SABOTAGES.items() if each.by_proxy} == set(MALICE)


def test_timeline_carries_faults_out_in_order_and_mends_what_is_open():
    """What has no end before the run is over is mended then; an injector that fails is told, and the rest goes on."""
    done = []

    def note(what):
        return lambda: done.append(what)

    def fail():
        raise RuntimeError("no such node")

    faults = [
        Fault("late", 0.5, 0.9, note("late begins"), note("late ends")),
        Fault("early", 0.0, 0.2, note("early begins"), note("early ends")),
        Fault("broken", 0.3, 0.4, fail, note("broken ends")),
        Fault("open", 0.6, 99.0, note("open begins"), note("open ends")),
    ]
    timeline = Timeline(faults, 0.5, start_clock())
    thread = threading.Thread(target=timeline.run)
    thread.start()
    wait_until(lambda: "late ends" in done)
    assert timeline.current == "open"
    timeline.stop()
    thread.join(timeout=5)
    assert done == ["early begins", "early ends", "broken ends", "late begins", "open begins", "late ends", "open ends"]
    assert [(span.name, span.error) for span in timeline.spans if span.error] == [
        ("broken", "RuntimeError: no such node")
    ]
    assert all(span.ended_s is not None and span.ended_s >= span.began_s for span in timeline.spans)
