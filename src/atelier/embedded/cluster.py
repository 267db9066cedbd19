"""The embedded cluster as a whole: made once, started in seconds, and taken apart by those who want to see it fail."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from atelier.embedded import build, promotion
from atelier.embedded.binaries import REACHABLE_ROOT
from atelier.embedded.decide import Way, choose_primary
from atelier.embedded.errors import EmbeddedError, PortTakenError
from atelier.embedded.follow import Following, make_slots
from atelier.embedded.layout import ClusterState, DataFolder
from atelier.embedded.lock import hold_lock
from atelier.embedded.node import Node, Server, remove
from atelier.embedded.opening import Say, add_nodes, check_complete, check_major, make_nodes_folder, make_server
from atelier.embedded.ports import FIRST, SPREAD, find_free, is_free

_LOCK_S = 5.0
_MOST_REPLICAS = 8
_PORT_TRIES = 5


class EmbeddedCluster:
    """A primary and its replicas in one data folder.

    Every method looks at the folders and the processes anew and holds the folder's lock while it works, so that
    several processes may use one cluster at the same time. All waits are bounded.
    """

    def __init__(self, server: Server, state: ClusterState, *, say: Say) -> None:
        """Use `create_or_open` or `open`."""
        self._server = server
        self._state = state
        self._say = say

    # ------------------------------------------------------------ making and opening

    @classmethod
    def create_or_open(
        cls,
        data_dir: Path,
        replicas: int | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        say: Say = lambda _: None,
        extra_settings: Mapping[str, str] | None = None,
        reachable_root: Path = REACHABLE_ROOT,
    ) -> "EmbeddedCluster":
        """Opens the cluster of a data folder, or begins a new one there. Starts nothing.

        Args:
            data_dir: a folder of a cluster, an empty one, or one to be made.
            replicas: how many at least; None means those it has, or two.
            environ: where ATELIER_PG_BIN and ATELIER_PG_USER are looked up; None means this process's.
            say: is told what happens, one line at a time.
            extra_settings: PostgreSQL settings beyond the shared configuration; remembered.
            reachable_root: where root puts what the servers' user cannot reach where it is.

        Raises:
            EmbeddedError: the folder, the account or the programs will not do.
        """
        if replicas is not None and not 0 <= replicas <= _MOST_REPLICAS:
            raise EmbeddedError(f"a cluster has 0 to {_MOST_REPLICAS} replicas, not {replicas}")
        folder = DataFolder(data_dir)
        server = make_server(folder, environ=environ, reachable_root=reachable_root, say=say, create=True)
        with hold_lock(folder.lock, timeout_s=_LOCK_S):
            state = folder.load_state() if folder.has_cluster() else ClusterState(server.binaries.major, "pg1", {})
            check_major(folder, state, server)
            check_complete(folder, state)
            wanted = 1 + (replicas if replicas is not None else 2 if not state.ports else 0)
            if replicas is not None and wanted < len(state.ports):
                say(f"the cluster has {len(state.ports) - 1} replicas already, and keeps them")
            add_nodes(state, wanted)
            state.extra.update(extra_settings or {})
            make_nodes_folder(server, reachable_root=reachable_root, say=say)
            folder.save_state(state)
        return cls(server, state, say=say)

    @classmethod
    def open(
        cls, data_dir: Path, *, environ: Mapping[str, str] | None = None, say: Say = lambda _: None
    ) -> "EmbeddedCluster":
        """Opens the cluster of a data folder.

        Raises:
            EmbeddedError: there is none, or it cannot be used.
        """
        folder = DataFolder(data_dir)
        state = folder.load_state()
        server = make_server(folder, environ=environ, reachable_root=REACHABLE_ROOT, say=say, create=False)
        check_major(folder, state, server)
        return cls(server, state, say=say)

    # ------------------------------------------------------------ what it is

    @property
    def folder(self) -> DataFolder:
        """Its data folder."""
        return self._server.folder

    @property
    def nodes(self) -> dict[str, Node]:
        """Its nodes by name, in order."""
        return {
            name: Node(self._server, name, port=port, extra=self._state.extra)
            for name, port in self._state.ports.items()
        }

    @property
    def primary(self) -> Node:
        """The node that was the primary when a command last looked."""
        return self.node(self._state.primary)

    def node(self, name: str) -> Node:
        """One node.

        Raises:
            EmbeddedError: there is none of this name.
        """
        if name not in self._state.ports:
            raise EmbeddedError(f"there is no node {name!r}; there are {', '.join(self._state.ports)}")
        return self.nodes[name]

    def environment(self) -> dict[str, str]:
        """What a process of the service needs in its environment to use this cluster; holds secrets."""
        passwords = self._server.secrets.passwords
        return {
            "ATELIER_NODES": ",".join(f"{name}=127.0.0.1:{port}" for name, port in self._state.ports.items()),
            "ATELIER_DATABASE": "atelier",
            "ATELIER_TOKEN_KEYS": f"k1:{self._server.secrets.token_key}",
            **{
                f"ATELIER_{role.upper()}_PASSWORD": passwords[role]
                for role in ("reader", "writer", "monitor", "migrator")
            },
        }

    def superuser_dsn(self, name: str) -> str:
        """The address for a superuser's connection to a node; never for the service."""
        return self.node(name).superuser_dsn()

    # ------------------------------------------------------------ the whole cluster

    def start(self) -> None:
        """Starts all nodes, the primary first, making or mending what is not complete.

        Raises:
            EmbeddedError: a node does not start, or does not follow.
        """
        with self._operate():
            primary = self._start_primary()
            following = Following(self._server, primary, self._say)
            following.make_slots([name for name in self.nodes if name != primary.name])
            for name in self.nodes:
                if name != primary.name:
                    self._follow(following, name)

    def stop(self) -> None:
        """Stops all nodes, the replicas first: the primary then has nobody left to wait for."""
        with self._operate():
            names = [name for name in self.nodes if name != self._state.primary]
            for name in (*names, self._state.primary):
                if self.node(name).running():
                    self._say(f"{name}: stopping")
                    self.node(name).stop()

    def running(self) -> list[str]:
        """The names of the nodes whose servers run."""
        return [name for name, node in self.nodes.items() if node.running()]

    # ------------------------------------------------------------ one node

    def start_node(self, name: str) -> None:
        """Starts one node in the role that is its own now; one that a promotion left behind becomes a replica."""
        with self._operate():
            node = self.node(name)
            primary = self._find_primary()
            if name == primary.name:
                self._start_primary()
                Following(self._server, self.primary, self._say).make_slots([n for n in self.nodes if n != name])
            elif primary.answering():
                self._follow(Following(self._server, primary, self._say), name)
            else:
                self._start_alone(node, primary)

    def stop_node(self, name: str) -> None:
        """Stops one node in good order."""
        with self._operate():
            self.node(name).stop()

    def kill(self, name: str) -> None:
        """Ends a node as a crash would."""
        with self._operate():
            self.node(name).kill()

    def freeze(self, name: str) -> None:
        """Stops a node's processes where they are, as a machine that hangs."""
        with self._operate():
            self.node(name).freeze()

    def thaw(self, name: str) -> None:
        """Lets a frozen node go on."""
        with self._operate():
            self.node(name).thaw()

    def pause_replay(self, name: str) -> None:
        """Lets a replica receive, but not show, what the primary writes from now on."""
        with self._operate():
            self._replica(name).pause_replay()

    def resume_replay(self, name: str) -> None:
        """Lets a replica show what it has received."""
        with self._operate():
            self._replica(name).resume_replay()

    def delay_apply(self, name: str, delay_ms: int) -> None:
        """Lets a replica show each commit so much later than it was made, until the node's next start or promotion.

        Args:
            name: the replica.
            delay_ms: 0 for no delay.
        """
        with self._operate():
            self._replica(name).delay_apply(delay_ms)

    def promote(self, name: str) -> None:
        """Makes a replica the primary, and the others follow it.

        A primary that still answers is stopped first, so that nothing it acknowledged is lost, and then rejoins. One
        that is frozen or dead is left behind: what it had not sent is lost, and its next start rejoins it.

        Raises:
            EmbeddedError: the node is no running replica, or did not become the primary in time.
        """
        with self._operate():
            node = self._replica(name)
            old = self._find_primary()
            handed_over = old.answering()
            if handed_over:
                self._say(f"{old.name}: stopping, so that {name} has all that it acknowledged")
                promotion.hand_over(old, node)
            elif old.running():
                self._say(f"{old.name}: frozen, and left behind; `atelier cluster rejoin {old.name}` when it goes on")
            self._promote(node)
            self._repoint(node, old=old, rejoin_old=handed_over)

    def rejoin(self, name: str, *, clone: bool = False) -> None:
        """Makes a node, whatever has become of it, a replica of the present primary.

        Args:
            name: any node but the primary.
            clone: copy all of the primary, though less might do.
        """
        with self._operate():
            node, primary = self.node(name), self._find_primary()
            if name == primary.name:
                raise EmbeddedError(f"{name} is the primary; promote another node first")
            if not primary.answering():
                raise EmbeddedError(f"{primary.name}, the primary, does not answer; start it first")
            if node.running() and not node.answering():
                node.stop()
            self._follow(Following(self._server, primary, self._say), name, forced=Way.CLONE if clone else None)

    # ------------------------------------------------------------ inner steps

    @contextmanager
    def _operate(self) -> Iterator[None]:
        """Holds the lock, and begins with what other commands have changed since."""
        with hold_lock(self.folder.lock, timeout_s=_LOCK_S):
            self._state = self.folder.load_state()
            yield

    def _save(self) -> None:
        self.folder.save_state(self._state)

    def _replica(self, name: str) -> Node:
        node = self.node(name)
        if not node.answering():
            raise EmbeddedError(f"{name} is not running, or frozen")
        if node.sql("select pg_is_in_recovery()") != "t":
            raise EmbeddedError(f"{name} is the primary")
        return node

    def _find_primary(self) -> Node:
        found = [node.look() for node in self.nodes.values()]
        name = choose_primary(found, recorded=self._state.primary) if self._state.made else self._state.primary
        if name is None:
            raise EmbeddedError("no node is a primary; choose one with `atelier cluster promote NODE`")
        if name != self._state.primary:
            self._say(f"{name} is the primary now, not {self._state.primary}")
            self._state.primary = name
            self._save()
        return self.node(name)

    def _start_primary(self) -> Node:
        build.write_shared(self._server)
        if not self._state.made:
            self._make_first()
        primary = self._find_primary()
        if not primary.running():
            self._say(f"{primary.name}: starting the primary")
            primary = self._start_on_free_port(primary.name)
        elif not primary.answering():
            raise EmbeddedError(f"{primary.name}, the primary, is frozen; thaw it first")
        self._update_roles(primary)
        if not self._state.made:
            self._state.made = True
            self._save()
        return primary

    def _make_first(self) -> None:
        self._say("making a new cluster")
        for node in self.nodes.values():
            node.stop()
            node.tidy()
            remove(node.home)
        self._state.roles_digest = ""
        build.make_first(self._server, self.primary)

    def _update_roles(self, primary: Node) -> None:
        text, digest = build.read_roles()
        if digest != self._state.roles_digest:
            self._say(f"{primary.name}: making the roles")
            build.run_roles(self._server, primary, text)
            self._state.roles_digest = digest
            self._save()

    def _start_on_free_port(self, name: str) -> Node:
        """Starts the primary; on another port when a stranger has taken its own."""
        for attempt in range(_PORT_TRIES):
            self._choose_port(name, attempt=attempt)
            node = self.node(name)
            node.configure(None)
            try:
                node.start()
            except PortTakenError:
                continue
            return node
        raise EmbeddedError(f"{name} finds no free port")

    def _choose_port(self, name: str, *, attempt: int) -> None:
        """Keeps the remembered port while it is free; after a failed attempt takes another one anywhere.

        Whoever else looks for the first free port finds the same one, and may be quicker again and again.
        """
        port = self._state.ports[name]
        if port and attempt == 0 and is_free(port):
            return
        first = FIRST if attempt == 0 else SPREAD.start + secrets.randbelow(len(SPREAD))
        self._state.ports[name] = find_free(set(self._state.ports.values()), first=first)
        if port:
            self._say(f"{name}: port {port} is taken; it is {self._state.ports[name]} from now on")
        self._save()

    def _follow(self, following: Following, name: str, *, forced: Way | None = None) -> None:
        """Brings a node to follow; on another port when a stranger has taken its own."""
        for attempt in range(_PORT_TRIES):
            if not self.node(name).running():
                self._say(f"{name}: starting a replica of {following.primary.name}")
                self._choose_port(name, attempt=attempt)
            make_slots(following.primary, [name])
            try:
                following.bring(self.node(name), forced=forced)
            except PortTakenError:
                continue
            return
        raise EmbeddedError(f"{name} finds no free port")

    def _start_alone(self, node: Node, primary: Node) -> None:
        """Starts a replica whose primary is gone: it can serve what it has."""
        found = node.look()
        if not found.has_data or found.torn or not found.standby:
            raise EmbeddedError(f"{node.name} can follow {primary.name} only when that runs; start it first")
        self._say(f"{node.name}: starting; {primary.name}, its primary, does not answer")
        self._choose_port(node.name, attempt=0)
        node = self.node(node.name)
        node.configure(Following(self._server, primary, self._say).upstream)
        node.start()

    def _promote(self, node: Node) -> None:
        self._say(f"{node.name}: promoting")
        promotion.take_over(node, [name for name in self.nodes if name != node.name])
        self._state.primary = node.name
        self._save()
        promotion.settle(node)

    def _repoint(self, node: Node, *, old: Node, rejoin_old: bool) -> None:
        following = Following(self._server, node, self._say)
        for peer in self.nodes.values():
            if peer.name in {node.name, old.name}:
                continue
            if peer.answering():
                self._say(f"{peer.name}: following {node.name}")
                self._follow(following, peer.name)
            elif peer.running():
                peer.configure(following.upstream)
                peer.reload()
        if rejoin_old:
            self._follow(following, old.name)
