"""The data folder: what is ours, what is private, what is remembered, and what is refused in one line."""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from atelier.embedded.config import Upstream, quote_setting, render_node_config, size_buffers, strip_identity
from atelier.embedded.errors import BusyError, DataFolderError
from atelier.embedded.layout import ClusterState, DataFolder, turn_log, write_private
from atelier.embedded.lock import hold_lock
from atelier.embedded.ports import find_free, is_free
from atelier.embedded.process import find_postmaster, find_process, own_identity

GIB = 2**30
STATE = ClusterState(18, "pg1", {"pg1": 5433, "pg2": 5434}, made=True)


def mode_of(path: Path) -> int:
    """A file's permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    """Nobody's home folder becomes a data folder by a slip of the finger."""
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(DataFolderError, match=r"holds 'thesis\.txt'"):
        DataFolder(tmp_path).claim(mode=0o700)


def test_folder_of_a_cluster_may_hold_other_things_later(tmp_path: Path) -> None:
    """A note beside the cluster is no reason not to start it."""
    folder = DataFolder(tmp_path)
    folder.save_state(STATE)
    (tmp_path / "notes.txt").touch()
    folder.claim(mode=0o700)


@pytest.mark.parametrize("name", ["secrets.json", "cluster.json", "nodes.list"])
def test_part_of_a_file_that_a_killed_start_was_writing_is_removed(tmp_path: Path, name: str) -> None:
    """It may hold secrets, and it must not make every later start refuse the folder."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".{name}.{dead.pid}").touch()
    DataFolder(tmp_path).claim(mode=0o700)
    assert list(tmp_path.iterdir()) == []


def test_part_of_a_file_that_another_start_is_writing_is_left_to_it(tmp_path: Path) -> None:
    """Two first starts at the same time: the one may not pull the file from under the other."""
    partial = tmp_path / f".secrets.json.{os.getpid()}"
    partial.touch()
    DataFolder(tmp_path).claim(mode=0o700)
    assert partial.exists()


@pytest.mark.parametrize("name", [".thesis.txt.123", ".secrets.json.old", "secrets.json.123"])
def test_hidden_file_of_somebody_else_is_a_stranger(tmp_path: Path, name: str) -> None:
    """Only the very names that we write are ours."""
    (tmp_path / name).touch()
    with pytest.raises(DataFolderError, match="is no data folder of atelier"):
        DataFolder(tmp_path).claim(mode=0o700)
    assert (tmp_path / name).exists()


def test_claimed_folder_is_closed_to_others(tmp_path: Path) -> None:
    """Whatever the umask."""
    folder = DataFolder(tmp_path / "a" / "b")
    folder.claim(mode=0o700)
    assert mode_of(folder.path) == 0o700


def test_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """One line, no traceback."""
    path = tmp_path / "data"
    path.touch()
    with pytest.raises(DataFolderError, match="cannot be used as data folder"):
        DataFolder(path).claim(mode=0o700)


def test_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    """Each data folder has its own, and keeps them."""
    one, other = DataFolder(tmp_path / "one"), DataFolder(tmp_path / "other")
    one.path.mkdir()
    other.path.mkdir()
    assert one.load_secrets() == one.load_secrets()
    assert one.load_secrets() != other.load_secrets()
    assert mode_of(tmp_path / "one" / "secrets.json") == 0o600
    assert len(set(one.load_secrets().passwords.values())) == 6


def test_api_key_that_is_missing_or_empty_is_none(tmp_path: Path) -> None:
    """A new one is made then; nothing is raised."""
    folder = DataFolder(tmp_path)
    assert folder.load_api_key() is None
    folder.api_key.touch()
    assert folder.load_api_key() is None


def test_api_key_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    """It names the file."""
    folder = DataFolder(tmp_path)
    folder.api_key.mkdir()
    with pytest.raises(DataFolderError, match=r"api-key cannot be read: Is a directory"):
        folder.load_api_key()


def test_secrets_are_not_shown_by_their_object(tmp_path: Path) -> None:
    """They would end up in a log or a test's output."""
    made = DataFolder(tmp_path).load_secrets()
    assert made.token_key not in repr(made)
    assert made.passwords["reader"] not in repr(made)


def test_state_is_remembered(tmp_path: Path) -> None:
    """Every field survives."""
    folder = DataFolder(tmp_path)
    folder.save_state(STATE)
    assert folder.load_state() == STATE


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "colour": "red"}', "\x00"])
def test_damaged_state_is_one_line(tmp_path: Path, text: str) -> None:
    """A cut-off or foreign file names itself."""
    folder = DataFolder(tmp_path)
    folder.save_state(STATE)
    (tmp_path / "cluster.json").write_text(text)
    with pytest.raises(DataFolderError, match=r"cluster\.json"):
        folder.load_state()


def test_missing_cluster_says_how_to_make_one(tmp_path: Path) -> None:
    """The commonest mistake: the wrong folder."""
    with pytest.raises(DataFolderError, match=r"there is no cluster in .*atelier up"):
        DataFolder(tmp_path).load_state()


def test_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A reader never sees a part, and a failed write leaves the old file."""
    path = tmp_path / "file"
    write_private(path, "old")
    with pytest.raises(DataFolderError):
        write_private(tmp_path / "missing" / "file", "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_large_log_is_put_aside_and_a_small_one_is_not(tmp_path: Path) -> None:
    """Two files are all there ever are."""
    log = tmp_path / "log"
    log.write_text("small")
    turn_log(log)
    assert log.exists()
    os.truncate(log, 10_000_001)
    turn_log(log)
    assert not log.exists()
    assert (tmp_path / "log.1").exists()


def test_second_operator_is_told_who_the_first_is(tmp_path: Path) -> None:
    """The lock is per open file, so that two threads of one process exclude each other as well."""
    first, second = hold_lock(tmp_path / "lock", timeout_s=0), hold_lock(tmp_path / "lock", timeout_s=0.05)
    with first, pytest.raises(BusyError, match=f"process {os.getpid()}"), second:
        pass


def test_lock_is_free_again_after_a_failure(tmp_path: Path) -> None:
    """However the first one ends."""
    with pytest.raises(ValueError, match="x"), hold_lock(tmp_path / "lock", timeout_s=0):
        raise ValueError("x")
    with hold_lock(tmp_path / "lock", timeout_s=0):
        pass


def test_taken_port_is_passed_over() -> None:
    """By a listener, and by another node that is about to listen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        found = find_free({port + 1}, first=port)
    assert found > port + 1


def test_pid_file_of_a_stranger_is_no_server(tmp_path: Path) -> None:
    """The pid was given to another process since: this one."""
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n0\n5433\n\n\n\nready\n")
    assert find_postmaster(tmp_path) is None


@pytest.mark.parametrize("text", ["", "\n", "not a number", "999999999\n", "-5\n", "0\n"])
def test_damaged_pid_file_is_no_server(tmp_path: Path, text: str) -> None:
    """Half-written or nonsense: never an error, never a process group."""
    (tmp_path / "postmaster.pid").write_text(text)
    assert find_postmaster(tmp_path) is None


def test_process_is_found_by_pid_and_time_of_creation() -> None:
    """A pid alone may be somebody else's by now."""
    pid, created_at_s = own_identity()
    assert find_process(pid, created_at_s) == psutil.Process()
    assert find_process(pid, created_at_s - 3600) is None


def test_configuration_of_a_standby_names_its_upstream_and_holds_no_password(tmp_path: Path) -> None:
    """The password stays in a file of its own."""
    text = render_node_config(
        "pg2",
        port=5434,
        shared=tmp_path / "it's.conf",
        hba=tmp_path / "hba",
        upstream=Upstream(5433, tmp_path / "pass"),
        memory_bytes=8 * GIB,
        extra={"fsync": "off"},
    )
    assert f"include '{tmp_path}/it''s.conf'" in text
    assert "primary_conninfo = 'host=127.0.0.1 port=5433 user=replicator application_name=pg2" in text
    assert "password" not in text.replace("passfile", "")
    assert text.index("include") < text.index("fsync")
    assert "listen_addresses = '127.0.0.1'" in text


def test_configuration_of_a_primary_follows_nobody(tmp_path: Path) -> None:
    """Also after it has been a standby: the settings are there, and empty."""
    text = render_node_config(
        "pg1", port=1, shared=tmp_path, hba=tmp_path, upstream=None, memory_bytes=8 * GIB, extra={}
    )
    assert "primary_conninfo = ''" in text
    assert "primary_slot_name = ''" in text


@pytest.mark.parametrize(("memory_gib", "buffers_mib"), [(1, 128), (3, 128), (8, 341), (24, 1024), (256, 1024)])
def test_buffers_of_a_node_follow_the_memory_of_its_machine(memory_gib: int, buffers_mib: int, tmp_path: Path) -> None:
    """Between the server's own default and a gibibyte; what somebody has set by hand stands in its place."""
    assert size_buffers(memory_gib * GIB) == buffers_mib

    def render(extra: dict[str, str]) -> str:
        return render_node_config(
            "pg1", port=1, shared=tmp_path, hba=tmp_path, upstream=None, memory_bytes=memory_gib * GIB, extra=extra
        )

    assert f"shared_buffers = '{buffers_mib}MB'" in render({})
    assert f"shared_buffers = '{buffers_mib}MB'" not in render({"shared_buffers": "16MB"})


def test_other_node_s_identity_is_stripped_and_the_rest_kept() -> None:
    """A clone and a rewind bring the other one's postgresql.auto.conf along."""
    text = "# Do not edit\nport = '1'\nwork_mem = '8MB'\nprimary_conninfo = 'host=x'\nprimary_slot_name='pg9'\n"
    assert strip_identity(text) == "# Do not edit\nwork_mem = '8MB'\n"


def test_setting_is_quoted() -> None:
    """Quotes and backslashes are doubled, as the file's grammar has it."""
    assert quote_setting("a'b\\c") == "'a''b\\\\c'"


def test_state_file_is_json_for_others(tmp_path: Path) -> None:
    """People look into it."""
    DataFolder(tmp_path).save_state(STATE)
    assert json.loads((tmp_path / "cluster.json").read_text())["primary"] == "pg1"
