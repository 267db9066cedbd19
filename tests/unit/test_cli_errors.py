"""Whatever is asked wrongly ends in one clear line and a non-zero exit, never in a traceback."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from atelier.cli.main import cli, run
from atelier.embedded.layout import ClusterState, DataFolder


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's own environment, and a folder without a cluster."""
    for name in list(os.environ):
        if name.startswith("ATELIER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    """The one line that a command ends with."""
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("atelier: ")
    assert len(captured.err.splitlines()) == 1
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--colour"], "No such option"),
        (["explode"], "No such command"),
        (["up", "--port", "high"], "not a valid integer"),
        (["up", "--port", "70000"], "not in the range"),
        (["up", "--replicas", "99"], "not in the range"),
        (["serve", "--role", "both"], "is not one of"),
        (["cluster", "kill"], "Missing argument"),
        (["cluster", "delay-apply", "pg2", "soon"], "is not a valid integer"),
        (["key", "create", "--name", "x"], "Missing option"),
        (["key", "create", "--name", "x", "--scope", "everything"], "is not one of"),
        (["key", "create", "--name", "x", "--scope", "admin", "--expires-in", "0"], "not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """Exit code 2, as usual."""
    assert said in complaint(capsys, *arguments, code=2)


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group, with the words that call it."""
    if not isinstance(command, click.Group):
        yield words, command
        return
    for name, child in command.commands.items():
        yield from leaves(child, (*words, name))


COMMANDS = dict(leaves(cli))
# What a command needs beside its own words, by the name of the parameter.
NEEDED = {
    "node": "pg1",
    "delay_ms": "100",
    "which": "x",
    "folder": "out",
    "paths": "in",
    "name": "--name=x",
    "scopes": "--scope=admin",
}


def test_every_command_but_the_generator_takes_a_data_folder() -> None:
    """Whoever adds a command that touches a cluster is reminded here."""
    without = [words for words, command in COMMANDS.items() if "data_dir" not in {p.name for p in command.params}]
    assert without == [("generate",)]


@pytest.mark.parametrize("words", [words for words in COMMANDS if words not in {("up",), ("generate",)}], ids=" ".join)
def test_missing_cluster_is_one_line_that_says_where(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """Every command that touches a cluster looks in the data folder; `up` makes one."""
    Path("in").mkdir()
    for name in ("product", "features", "styles", "photos", "skus", "related"):
        Path("in", f"{name}.csv").touch()
    needed = [NEEDED[p.name] for p in COMMANDS[words].params if p.name in NEEDED]
    assert "there is no cluster in" in complaint(capsys, *words, *needed, "--data-dir=nowhere", code=1)
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/file"), "a/file: No space left on device"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (TimeoutError(), "TimeoutError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_system_refuses_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    """Wherever it does, and though nobody thought of it there."""

    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr("atelier.cli.status.find_nodes", refuse)
    assert complaint(capsys, "status", code=1) == f"atelier: {said}\n"


def test_data_folder_comes_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ATELIER_DATA_DIR`, with the option above it."""
    monkeypatch.setenv("ATELIER_DATA_DIR", "elsewhere")
    assert "elsewhere" in complaint(capsys, "status", code=1)
    assert "here" in complaint(capsys, "status", "--data-dir=here", code=1)


def test_somebody_else_s_folder_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Before anything is written into it."""
    (tmp_path / "thesis.txt").touch()
    said = complaint(capsys, "up", "--detach", f"--data-dir={tmp_path}", code=1)
    assert "no data folder of atelier" in said
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_file_in_the_place_of_the_data_folder_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One line."""
    (tmp_path / "file").touch()
    assert "cannot be used as data folder" in complaint(
        capsys, "up", "--detach", f"--data-dir={tmp_path / 'file'}", code=1
    )


def test_folder_that_cannot_be_written_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Not even root writes there."""
    assert "cannot be used" in complaint(capsys, "up", "--detach", "--data-dir=/proc/atelier", code=1)


def test_folder_of_another_major_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It says which, and what to do."""
    folder = DataFolder(tmp_path / "data")
    folder.path.mkdir()
    folder.save_state(ClusterState(17, "pg1", {"pg1": 5433}, made=True))
    said = complaint(capsys, "up", "--detach", f"--data-dir={folder.path}", code=1)
    assert "was made by PostgreSQL 17" in said
    assert "ATELIER_PG_BIN" in said


def test_garbled_version_of_a_node_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It names the file."""
    folder = DataFolder(tmp_path / "data")
    (folder.nodes / "pg1" / "data").mkdir(parents=True)
    (folder.nodes / "pg1" / "data" / "PG_VERSION").write_text("eighteen\n")
    folder.save_state(ClusterState(18, "pg1", {"pg1": 5433}, made=True))
    for command in (["up", "--detach"], ["status"]):
        said = complaint(capsys, *command, f"--data-dir={folder.path}", code=1)
        assert "pg1/data/PG_VERSION is damaged" in said


@pytest.mark.parametrize("command", ["up", "status"])
def test_damaged_cluster_file_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    """It names the file."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cluster.json").write_text("{")
    said = complaint(capsys, command, f"--data-dir={tmp_path / 'data'}", code=1)
    assert "cluster.json is damaged" in said


def test_folder_without_programs_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ATELIER_PG_BIN must be the folder of all of them."""
    monkeypatch.setenv("ATELIER_PG_BIN", str(tmp_path))
    assert "ATELIER_PG_BIN takes" in complaint(capsys, "up", "--detach", "--data-dir=data", code=1)


SERVICE = {
    "ATELIER_NODES": "pg1=127.0.0.1:1",
    "ATELIER_TOKEN_KEYS": "k1:" + "00" * 32,
    "ATELIER_READER_PASSWORD": "x",
    "ATELIER_WRITER_PASSWORD": "x",
    "ATELIER_MONITOR_PASSWORD": "x",
}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ATELIER_NODES", "pg1", "ATELIER_NODES"),
        ("ATELIER_TOKEN_KEYS", "k1:short", "ATELIER_TOKEN_KEYS"),
        ("ATELIER_PORT", "high", "ATELIER_PORT"),
        ("ATELIER_COLOUR", "red", "ATELIER_COLOUR is no setting"),
        ("ATELIER_READER_PASSWORD", None, "ATELIER_READER_PASSWORD is not set"),
    ],
)
def test_bad_setting_of_the_service_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, said: str
) -> None:
    """It names the setting, and nothing was started."""
    for key, setting in {**SERVICE, name: value}.items():
        if setting is not None:
            monkeypatch.setenv(key, setting)
    assert said in complaint(capsys, "serve", code=2)


@pytest.mark.parametrize("command", [["serve"], ["key", "list"]])
@pytest.mark.parametrize(
    "secret",
    [(b"\xff\xfe", "is not UTF-8"), (None, "No such file or directory")],
    ids=["no text", "no file"],
)
def test_secret_that_cannot_be_read_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: list[str],
    secret: tuple[bytes | None, str],
) -> None:
    """It names the variable that names the file."""
    path = tmp_path / "secret"
    content, said = secret
    if content is not None:
        path.write_bytes(content)
    for key, setting in SERVICE.items():
        if key != "ATELIER_WRITER_PASSWORD":
            monkeypatch.setenv(key, setting)
    monkeypatch.setenv("ATELIER_WRITER_PASSWORD_FILE", str(path))
    line = complaint(capsys, *command, code=2)
    assert "ATELIER_WRITER_PASSWORD_FILE cannot be read: " in line
    assert said in line


def test_taken_port_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server would otherwise share the port with a stranger's workers."""
    for key, setting in SERVICE.items():
        monkeypatch.setenv(key, setting)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in complaint(capsys, "serve", f"--port={port}", code=1)


def test_version_and_help_are_no_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, on standard output."""
    assert run(["--version"]) == 0
    assert run(["--help"]) == 0
    assert "Usage: atelier" in capsys.readouterr().out
