"""Short runs of the scenarios on a real cluster: valid as they are, invalid once something is broken on purpose."""

# ruff: noqa: E501 - tables and scripts keep their lines

import contextlib
import json
import os
import pty
import re
import subprocess
import sys

import pytest

from loadtest.faults.embedded import Embedded, EmbeddedFailedError
from loadtest.sabotage.registry import SABOTAGES
from tests.support import memory_setting

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

QUICK = ("mixed", "flash-sale")
TROUBLED = ("replica-lag", "client-cuts")
LONG = (
    "heavy-writes",
    "hot-pages",
    "crossing-baskets",
    "replica-kill",
    "replica-freeze",
    "slow-network",
    "server-kill",
    "rolling-restart",
    "ddl-under-load",
    "primary-kill",
)
LABELS = [f"x{rate}" for rate in (1, 2, 3, 4, 6, 8, 12, 16)]
BY_PROXY = tuple(name for name, sabotage in SABOTAGES.items() if sabotage.by_proxy)
IN_HISTORY = ("lose-acknowledged",)


@pytest.fixture(scope="module")
def embedded():
    """A cluster of the lab's own, which its scenarios break and mend."""
    running = Embedded.start(settings=memory_setting())
    yield running
    running.close()


@pytest.fixture
def run(embedded, tmp_path):
    """Runs one scenario; gives its exit status, its words and its summary."""

    def run_scenario(name, *options, duration_s=4):
        words = [
            f"--data-dir={embedded.data_dir}",
            f"--duration={duration_s}",
            "--rate=0.6",
            f"--out={tmp_path}",
            *options,
        ]
        command = [sys.executable, "-m", "loadtest", "run", name, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=350, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        assert (tmp_path / "report.html").exists(), done.stdout + done.stderr
        return done.returncode, done.stdout, json.loads((tmp_path / "summary.json").read_text())

    return run_scenario


@pytest.mark.parametrize("name", QUICK)
def test_scenario_is_valid(name, run):
    """Nothing stale, nothing oversold, nothing lost, nothing applied twice, and no error."""
    status, told, summary = run(name)
    assert status == 0, told
    assert summary["figures"]["commands"] > 10
    assert summary["figures"]["errors"] == {}, told


@pytest.mark.slow
@pytest.mark.parametrize("name", TROUBLED)
def test_scenario_is_valid_while_something_breaks(name, run):
    """What breaks is in the report with its time, and every guarantee holds."""
    status, told, summary = run(name, duration_s=8)
    assert status == 0, told
    assert [span["error"] for span in summary["faults"] if span["error"]] == []
    assert all(span["ended_s"] > span["began_s"] for span in summary["faults"])


@pytest.mark.slow
def test_replicas_lag_by_pauses_and_by_a_delayed_apply(run):
    """The lag that the service itself tells is on the report's axis while each replica is late, and gone between."""
    status, told, summary = run("replica-lag", duration_s=20)
    assert status == 0, told
    lags = {span["name"]: worst_lag_ms(summary, span) for span in summary["faults"]}
    assert list(lags) == ["pg2 paused", "pg3 paused", "pg2 300 ms late", "pg3 1500 ms late"]
    assert lags["pg2 paused"] > 1000
    assert lags["pg3 1500 ms late"] > 900
    assert 250 < lags["pg2 300 ms late"] < 1000


def worst_lag_ms(summary, span):
    """The greatest lag of a fault's node in the seconds that began while the fault was there."""
    node = span["name"].split()[0]
    series = summary["series"]
    return max(
        lag_ms or 0
        for at_s, lag_ms in zip(series["at_s"], series["lag_ms"][node], strict=True)
        if span["began_s"] <= at_s <= span["ended_s"] - 0.5
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_scenario_is_valid(name, run):
    """The rest of the standard set, shortened."""
    status, told, summary = run(name, duration_s=12)
    assert status == 0, told
    assert [span["error"] for span in summary["faults"] if span["error"]] == []


@pytest.mark.slow
def test_ramp_tells_the_knee(run):
    """The rate rises until the limits break, and the last rate that kept them is told."""
    status, told, summary = run("browse-ramp", "--p95-limit=10", "--rate=8", duration_s=24)
    assert status in (0, 2), told
    assert summary["knee"]["reached"]
    assert "knee at" in told
    # How far it gets is the machine's affair; each rate but the last one kept the limits, and none was left out.
    rates = [phase["rate_per_s"] for phase in summary["phases"]]
    assert [phase["label"] for phase in summary["phases"]] == LABELS[: len(rates)]
    assert summary["knee"]["requests_per_s"] == (rates[-2] if len(rates) > 1 else 0)
    assert rates[:-1] == sorted(rates[:-1])


@pytest.mark.slow
def test_strategies_are_compared_side_by_side(run):
    """Each of the router's strategies has its figures from the same browsing."""
    status, told, summary = run("balance-compare", duration_s=16)
    assert status == 0, told
    labels = [phase["label"] for phase in summary["phases"]]
    assert labels == ["least-outstanding", "round-robin", "random-two-choices", "latency-ewma"]
    assert all(phase["p95_ms"] for phase in summary["phases"])


@pytest.mark.slow
def test_services_at_several_addresses_are_compared_side_by_side(embedded, tmp_path):
    """As with proxies of which each balances in its own way: each address is a phase, and has its name."""
    other = embedded.serve({"ATELIER_STRATEGY": "round-robin"})
    try:
        urls = [embedded.url, other.url]
        words = ["run", "balance-compare", *(f"--url={url}" for url in urls), "--duration=8", f"--out={tmp_path}"]
        command = [sys.executable, "-m", "loadtest", *words, f"--api-key={embedded.api_key}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        embedded.end(other)
    assert done.returncode == 0, done.stdout + done.stderr
    phases = json.loads((tmp_path / "summary.json").read_text())["phases"]
    assert [phase["label"] for phase in phases] == urls
    assert all(phase["rate_per_s"] > 5 and phase["p95_ms"] for phase in phases)


@pytest.mark.parametrize(
    "name",
    ["strip-tokens", *(pytest.param(name, marks=pytest.mark.slow) for name in ("send-twice", "lose-acknowledged"))],
)
def test_sabotage_is_caught_by_the_right_checker(name, run):
    """A service that breaks this promise does not pass."""
    check_caught(name, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BY_PROXY if name not in ("strip-tokens", "send-twice")])
def test_every_other_sabotage_between_clients_and_service_is_caught(name, run):
    """The same for all that the proxy can do."""
    check_caught(name, run)


def check_caught(name, run):
    """Runs the scenario that shows a sabotage best, and looks who says what."""
    sabotage = SABOTAGES[name]
    status, told, summary = run(sabotage.shown_by, f"--sabotage={name}", "--rate=1", duration_s=8)
    assert status == 1, told
    invalid = {verdict["guarantee"] for verdict in summary["verdicts"] if verdict["state"] == "invalid"}
    assert invalid & set(sabotage.caught_by), told
    assert f"sabotage {name}: caught by" in told


@pytest.mark.slow
def test_cache_that_is_never_emptied_is_caught_by_both_guarantees_that_it_breaks(run):
    """A client misses its own change, and an answer is older than the bound that was asked for."""
    status, told, summary = run("hot-pages", "--sabotage=stale-cache", "--rate=1", duration_s=10)
    assert status == 1, told
    invalid = {verdict["guarantee"] for verdict in summary["verdicts"] if verdict["state"] == "invalid"}
    assert {"read your writes", "bounded staleness"} <= invalid, told
    witness = next(v["witness"] for v in summary["verdicts"] if v["guarantee"] == "read your writes")
    assert "sent with its token" in witness


@pytest.mark.slow
def test_service_whose_memory_hears_of_no_change_is_caught(run):
    """The same promises, broken by the service's own memory; as it is, the same pages are right, and come from it."""
    status, told, summary = run("hot-pages", "--sabotage=deaf-memory", "--rate=1", duration_s=10)
    assert status == 1, told
    invalid = {verdict["guarantee"] for verdict in summary["verdicts"] if verdict["state"] == "invalid"}
    assert {"read your writes", "bounded staleness"} <= invalid, told
    assert "sabotage deaf-memory: caught by" in told
    assert summary["memory"]["hits"] > 0


@pytest.mark.slow
def test_terminal_shows_rate_latency_errors_lag_and_fault_while_a_run_is_on(embedded, tmp_path):
    """On a terminal of 100 columns: each figure with its name, the fault of the moment, and at last the verdict."""
    words = ["run", "replica-lag", f"--data-dir={embedded.data_dir}", "--duration=6", f"--out={tmp_path}"]
    shown = run_on_terminal([sys.executable, "-m", "loadtest", *words])
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown))]
    for name in ("requests a second", "p99, ms", "errors", "replica lag, ms", "fault"):
        assert [line for line in lines if line.startswith(name)], name
    assert [line for line in lines if re.fullmatch(r"requests a second +[▁-█]+  \d+ reads, \d+ commands", line)]
    assert [line for line in lines if re.fullmatch(r"fault +pg2 paused", line)]
    assert [line for line in lines if re.match(r"replica-lag  .* of 6 s", line)]
    assert max(map(len, lines)) <= 100 or "VALID" in max(lines, key=len)
    assert "replica-lag: VALID (12 checkers): 0 stale, 0 oversold, 0 lost, 0 applied twice;" in shown


def run_on_terminal(command):
    """What a program writes to a terminal."""
    master, slave = pty.openpty()
    environ = os.environ | {"COLUMNS": "100", "LINES": "30", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True)
    os.close(slave)
    shown = b""
    # Linux ends a terminal whose programs are gone with an error.
    with contextlib.suppress(OSError):
        while data := os.read(master, 65_536):
            shown += data
    os.close(master)
    assert process.wait(timeout=60) == 0, shown.decode()
    return shown.decode()


@pytest.mark.slow
def test_standard_set_runs_what_is_named_and_ends_with_a_table(embedded, tmp_path):
    """A scenario, what a proxy breaks, and what is done to the history that the scenario has left."""
    chosen = ["mixed", "drop-events", "lose-acknowledged"]
    words = ["all", *(f"--only={name}" for name in chosen), f"--data-dir={embedded.data_dir}", f"--out={tmp_path}"]
    command = [sys.executable, "-m", "loadtest", *words, "--duration=8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mixed: VALID (12 checkers): 0 stale, 0 oversold, 0 lost, 0 applied twice;" in done.stdout
    assert "sabotage drop-events: caught by feed complete and ordered" in done.stdout
    assert "sabotage lose-acknowledged: caught by no lost acknowledged command" in done.stdout
    assert re.search(r"3 runs in \d+ s: all as they should be", done.stdout)


def test_service_of_a_given_cluster_must_have_the_settings_that_are_asked_for(embedded):
    """A report never says that something was off which was on."""
    with pytest.raises(EmbeddedFailedError, match="was not started with ATELIER_WORKERS=3"):
        Embedded.adopt(embedded.data_dir, settings={"ATELIER_WORKERS": "3"})


def test_wrong_command_lines_end_in_one_clear_line():
    """No traceback, and a status that is no verdict of validity."""
    for words in (["run", "no-such-scenario"], ["run", "mixed", "--url", "http://127.0.0.1:9"], ["run", "replica-kill", "--url", "x", "--api-key", "k"],
                  ["run", "mixed", "--url", "x", "--api-key", "k", "--setting", "ATELIER_WORKERS=2"],
                  ["run", "mixed", "--data-dir", "/nonexistent"], ["run", "mixed", "--url", "http://127.0.0.1:9", "--api-key", "k"]):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "loadtest", *words], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 2, words
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stderr.splitlines()[-1].startswith("loadtest: "), done.stderr
