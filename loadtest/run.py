"""One run of a scenario: brings everything up, lets the users loose, breaks things, reads what is left, and judges."""

import random
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import gevent
from locust import User
from locust.env import Environment

from loadtest.checkers.registry import check_history, doubt_all
from loadtest.checkers.verdict import Verdict
from loadtest.client import Patience, Session
from loadtest.clock import Clock, start_clock
from loadtest.commands import adjust
from loadtest.faults.embedded import Embedded
from loadtest.faults.tcp_proxy import TcpProxy
from loadtest.faults.timeline import Timeline
from loadtest.final import FinalStateError, Surveyor, is_answering
from loadtest.history.record import MalformedHistoryError
from loadtest.history.store import StoredHistory
from loadtest.memory import Recall, judge_memory, read_recall, sum_recall
from loadtest.metrics import Meter
from loadtest.plan import PhaseSpan, Plan, Result, phase_figures
from loadtest.recorder import Recorder
from loadtest.sabotage.proxy import MALICE, SabotageProxy
from loadtest.sabotage.service import IN_SERVICE, settings_for
from loadtest.sabotage.tamper import TAMPERS, tamper_with
from loadtest.scenarios.model import Crew, Phase
from loadtest.transport import PlainTransport, Request
from loadtest.users.base import LabUser, Stage
from loadtest.watcher import Watcher
from loadtest.world import SetUpError, make_world

_STOP_S = 25
_CALM_S = 60
_HEAR_S = 20
_OPEN_S = 15
_POLL_S = 0.5
_KNEE_ERRORS = 0.03


class Lab:
    """Everything that a run has open, and its steps in order."""

    def __init__(self, plan: Plan, *, say: Callable[[str], None]) -> None:
        """Opens nothing yet; `say` is told what happens."""
        self.plan = plan
        self.scenario = plan.scenario
        self.say = say
        self.clock: Clock = start_clock()
        self.run_id = secrets.token_hex(4)
        self.meter = Meter()
        self.recorder = Recorder(plan.out / "history.jsonl", self.meter)
        self.embedded: Embedded | None = None
        self.proxy: TcpProxy | None = None
        self.sabotage: SabotageProxy | None = None
        self.direct_url = ""
        self.url = ""
        self.api_key = plan.api_key
        self.primary = ""
        self.replicas: Sequence[str] = ()
        self.timeline = Timeline((), plan.duration_s, self.clock)
        self.phases: list[PhaseSpan] = []
        self.notes: list[str] = []
        self.closed_loop_ms: dict[str, float] = {}
        self.recalled: dict[str, Recall | None] = {}
        self.memory: Recall | None = None
        self.running = False
        self.load_began_s: float | None = None

    # ------------------------------------------------------------ the whole run

    def run(self) -> Result:
        """Runs the scenario; everything that was opened is closed, whatever happens."""
        with ExitStack() as stack:
            stack.callback(self.recorder.close)
            self._open(stack)
            stage = self._set_up()
            watchers = self._start_watchers(stack)
            self.recalled = self._recall()
            with self._following_nodes():
                self._load(stage)
            self._calm_down()
            self.memory = sum_recall(self.recalled, self._recall(), is_on=self._has_memory())
            self._hear_out(stage, watchers)
            self._survey(stage)
        self._note_mistakes()
        self.say("checking the history")
        verdicts = self._judge() + (judge_memory(self.memory) if self.scenario.from_memory else [])
        return Result(
            verdicts,
            self.meter,
            self.timeline.spans,
            self.phases,
            self.recorder.count,
            self.closed_loop_ms,
            self.notes,
            self.memory,
        )

    # ------------------------------------------------------------ before

    def _open(self, stack: ExitStack) -> None:
        if self.plan.urls:
            self.direct_url = self.plan.urls[0].rstrip("/")
        else:
            self.embedded = self._bring_up()
            stack.callback(self.embedded.close)
            stack.callback(self._keep_log)
            self.direct_url, self.api_key = self.embedded.url, self.embedded.api_key
            if self.scenario.quorum:
                self.embedded.ask_for_quorum(self._look_at_nodes())
        # One of ours may be starting a process anew after the last run; of another's we ask that it is there.
        if not self._await_ready(0 if self.plan.urls else _CALM_S):
            raise SetUpError(f"no service is ready at {self.direct_url}")
        self._meet_nodes()
        targets = [self.direct_url]
        if self.scenario.servers and self.embedded:
            targets = [self.embedded.serve().url for _ in range(self.scenario.servers)]
        if self.plan.sabotage in IN_SERVICE and self.embedded:
            targets = [self.embedded.serve(settings_for(self.plan.sabotage, self.embedded.environ)).url]
        self.url = targets[0]
        if self.scenario.proxied:
            self.proxy = TcpProxy(targets, seed=self.plan.seed)
            stack.callback(self.proxy.close)
            self.url = self.proxy.url
        if self.plan.sabotage in MALICE:
            malice = MALICE[self.plan.sabotage](random.Random(self.plan.seed))
            self.sabotage = SabotageProxy(self.url, malice)
            stack.callback(self.sabotage.close)
            self.url = self.sabotage.url

    def _bring_up(self) -> Embedded:
        """A cluster of the run's own, unless one was given; how commits wait is part of how a cluster is made."""
        settings = self.plan.settings
        if self.plan.data_dir and not self.scenario.quorum:
            return Embedded.adopt(self.plan.data_dir, settings=settings)
        self.say("bringing up a cluster")
        return Embedded.start(settings={**settings, "ATELIER_QUORUM": "1"} if self.scenario.quorum else settings)

    def _set_up(self) -> Stage:
        self.say("making the shop")
        session = self._own_session("setup")
        world = make_world(session, self.scenario.shop, hot=self.scenario.hot)
        return Stage(
            world, self.recorder, clock=self.clock, api_key=self.api_key, seed=self.plan.seed, run_id=self.run_id
        )

    def _own_session(self, name: str) -> Session:
        return Session(
            name,
            PlainTransport(self.direct_url),
            api_key=self.api_key,
            recorder=self.recorder,
            clock=self.clock,
            rng=random.Random(f"{self.plan.seed}/{name}"),
            run_id=self.run_id,
            patience=Patience(attempts=20),
            timed=False,
        )

    def _start_watchers(self, stack: ExitStack) -> list[Watcher]:
        names = [f"watcher-{number + 1}" for number in range(self.scenario.watchers)]
        watchers = [Watcher(name, self.url, self.recorder, clock=self.clock) for name in names]
        for watcher in watchers:
            if not watcher.start(within_s=_OPEN_S):
                raise SetUpError("the change feed does not open")
            stack.callback(watcher.close)
        return watchers

    # ------------------------------------------------------------ the load

    def _load(self, stage: Stage) -> None:
        scenario, plan = self.scenario, self.plan
        phases = self._choose_phases()
        self.timeline = Timeline(scenario.faults(self), plan.duration_s, self.clock)
        faults = threading.Thread(target=self.timeline.run, daemon=True)
        faults.start()
        self.running, self.load_began_s = True, self.clock()
        try:
            for phase in phases:
                self._run_phase(stage, phase, self._url_of(phase), plan.duration_s / len(phases))
                if scenario.stops_at_knee and self._is_beyond_knee(self.phases[-1]):
                    self.say(f"the knee: {self.phases[-1].label} breaks the limits")
                    break
        finally:
            self.running = False
            self.timeline.stop()
            faults.join(timeout=240)

    def _choose_phases(self) -> Sequence[Phase]:
        """The scenario's; where each would have a service of its own and services are given, these side by side."""
        phases = self.scenario.phases or (Phase(self.scenario.name),)
        if self.plan.urls and phases[0].settings is not None:
            return [Phase(url) for url in self.plan.urls]
        return phases

    def _url_of(self, phase: Phase) -> str:
        if phase.settings is not None and self.embedded:
            return self.embedded.serve(phase.settings).url
        return phase.label if phase.label in self.plan.urls else self.url

    def _run_phase(self, stage: Stage, phase: Phase, url: str, duration_s: float) -> None:
        """Lets the users of all crews loose for a while; each ends its last errand before the phase is over."""
        classes: list[type[User]] = [self._make_class(crew, stage, phase, url) for crew in self.scenario.crews]
        environment = Environment(user_classes=classes, host=url, stop_timeout=_STOP_S)
        runner = environment.create_local_runner()
        total = sum(crew.users for crew in self.scenario.crews)
        began_s = self.clock()
        runner.start(total, spawn_rate=max(total, 1))
        gevent.sleep(duration_s)
        ended_s = self.clock()
        runner.stop()
        for percent in (50, 95, 99):
            figure = environment.stats.total.get_response_time_percentile(percent / 100)
            self.closed_loop_ms[f"p{percent}"] = float(figure or 0)
        runner.quit()
        self.phases.append(PhaseSpan(phase.label, began_s, ended_s, phase.rate))

    def _make_class(self, crew: Crew, stage: Stage, phase: Phase, url: str) -> type[LabUser]:
        attributes = {
            **crew.options,
            "stage": stage,
            "rate_per_s": crew.rate_per_s * self.plan.rate * phase.rate,
            "fixed_count": crew.users,
            "host": url,
            "abstract": False,
        }
        return type(crew.kind.__name__, (crew.kind,), attributes)

    def _is_beyond_knee(self, phase: PhaseSpan) -> bool:
        figures = phase_figures(self.meter, phase)
        return (figures["error_rate"] or 0.0) > _KNEE_ERRORS or (figures["p95_ms"] or 0.0) > self.plan.p95_limit_ms

    @contextmanager
    def _following_nodes(self) -> Iterator[None]:
        """Keeps an eye on the replicas' lag."""
        done = threading.Event()

        def follow() -> None:
            while not done.wait(_POLL_S):
                self._look_at_nodes()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=10)

    def _meet_nodes(self) -> None:
        """Waits until every node has its role, and remembers which: a fault of the last run may just be over."""
        deadline_s = time.monotonic() + _CALM_S
        while not self._know_all(self._look_at_nodes()):
            if time.monotonic() > deadline_s:
                raise SetUpError("the service knows no primary, or not every node's role")
            time.sleep(0.2)

    def _know_all(self, nodes: Sequence[str]) -> bool:
        # Where the operational routes are closed, nothing is known, and faults that need a node say so.
        return not nodes or (self.primary != "" and len(self.replicas) == len(nodes) - 1)

    def _look_at_nodes(self) -> list[str]:
        """Asks who is there; who is primary is remembered as it was before the load."""
        transport = PlainTransport(self.direct_url, timeout_s=3)
        try:
            document = transport.send(Request("GET", "/cluster", "/cluster", {})).json()
        finally:
            transport.close()
        nodes = document["nodes"] if isinstance(document, dict) and "nodes" in document else []
        for node in nodes:
            if node["lag_ms"] is not None:
                self.meter.see_lag(self.clock(), node["name"], float(node["lag_ms"]))
        if not self.running:
            self.primary = next((node["name"] for node in nodes if node["role"] == "primary"), "")
            self.replicas = [node["name"] for node in nodes if node["role"] == "replica"]
        return [node["name"] for node in nodes]

    def _recall(self) -> dict[str, Recall | None]:
        """What every process of the service that takes part has counted of its memory."""
        servers = [server.url for server in self.embedded.servers] if self.embedded else self.plan.urls
        return {url: read_recall(url) for url in (self.direct_url, *servers)}

    def _has_memory(self) -> bool:
        """Whether the lab has started the service with a memory; what others have started may have none."""
        is_own = self.embedded is not None and self.embedded.is_own
        return is_own and self.plan.settings.get("ATELIER_CACHE_BYTES") != "0"

    # ------------------------------------------------------------ after

    def _calm_down(self) -> None:
        self.say("waiting for calm")
        self._await_ready(_CALM_S)

    def _await_ready(self, within_s: float) -> bool:
        deadline_s = time.monotonic() + within_s
        while not (is_ready := is_answering(self.direct_url)) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        return is_ready

    def _hear_out(self, stage: Stage, watchers: Sequence[Watcher]) -> None:
        """One last change, which every watcher must be told of before it may leave."""
        canary = stage.world.canary
        answer = self._own_session("canary").command(adjust([(canary, 1)]))
        version = answer.json()["lines"][0]["version"] if answer.is_ok else 0
        for watcher in watchers:
            if not watcher.wait_for(f"sku:{canary}", version, within_s=_HEAR_S):
                self.notes.append(f"{watcher.name} was not told of the last change within {_HEAR_S} s")
            self.notes += [f"{watcher.name} had to begin anew: {why}" for why in watcher.lost]

    def _keep_log(self) -> None:
        """What the service said of itself goes with the report: a cluster of the run's own is gone after it."""
        log = self.embedded.data_dir / "service.log" if self.embedded else None
        if log is not None and log.exists():
            shutil.copy(log, self.plan.out / "service.log")

    def _note_mistakes(self) -> None:
        """An answer of 500 is a mistake of the service's, whatever the guarantees say."""
        for name, count in self.meter.all.errors.items():
            if name.startswith("status 5"):
                self.notes.append(f"{count} answers had {name}: a mistake of the service's; see service.log")

    def _survey(self, stage: Stage) -> None:
        self.say("reading the final state")
        surveyor = Surveyor(self.direct_url, self.api_key, self.recorder, self.clock)
        world = stage.world
        try:
            surveyor.survey(
                reservations=stage.reservations,
                skus=world.all_skus,
                products=world.all_products,
            )
        except FinalStateError as error:
            self.notes.append(f"the final state could not be read: {error}")

    def _judge(self) -> list[Verdict]:
        path = self.plan.out / "history.jsonl"
        if self.plan.sabotage in TAMPERS:
            with path.open(encoding="utf-8") as lines:
                broken = list(tamper_with(lines, self.plan.sabotage, random.Random(self.plan.seed)))
            path.write_text("".join(f"{line}\n" for line in broken), encoding="utf-8")
        names = tuple(self.scenario.checks)
        with StoredHistory() as history:
            try:
                with path.open(encoding="utf-8") as lines:
                    history.load(lines)
            except MalformedHistoryError as error:
                return doubt_all(str(error), names)
            return check_history(history, names)
