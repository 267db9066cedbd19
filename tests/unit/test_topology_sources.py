"""Where the list of nodes comes from."""

from pathlib import Path

import pytest

from atelier.errors import SettingsError
from atelier.settings import NodeAddress, Settings
from atelier.topology.sources import NodesFile, StaticNodes, choose_source

pytestmark = pytest.mark.anyio

ENVIRON = {
    "ATELIER_TOKEN_KEYS": f"k1:{'ab' * 32}",
    "ATELIER_READER_PASSWORD": "r",
    "ATELIER_WRITER_PASSWORD": "w",
    "ATELIER_MONITOR_PASSWORD": "m",
}
PAIR = (NodeAddress("pg1", "db", 5432), NodeAddress("pg2", "127.0.0.1", 5433))


@pytest.mark.parametrize("text", ["pg1=db:5432,pg2=127.0.0.1:5433", " pg1=db:5432 \n\npg2=127.0.0.1:5433\n"])
async def test_a_file_of_nodes_is_read_every_time(tmp_path: Path, text: str) -> None:
    """By commas or by lines; what changes in it is there at the next reading."""
    path = tmp_path / "nodes"
    path.write_text(text)
    settings = Settings.from_environment({**ENVIRON, "ATELIER_NODES_FILE": str(path)})
    source = choose_source(settings)
    assert settings.nodes == PAIR
    assert await source.nodes() == PAIR
    path.write_text("pg2=127.0.0.1:5433")
    assert await source.nodes() == PAIR[1:]


async def test_a_list_by_value_stays_as_it_is() -> None:
    """Nothing is read again."""
    settings = Settings.from_environment({**ENVIRON, "ATELIER_NODES": "pg1=db:5432,pg2=127.0.0.1:5433"})
    source = choose_source(settings)
    assert isinstance(source, StaticNodes)
    assert await source.nodes() == PAIR


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"nonsense", b"pg1=db", b"pg1=db:0", b"pg1=db:65536", b"a=b:1,a=c:2", b"pg1=\xff:1"]
)
async def test_a_file_that_names_no_nodes_says_so(tmp_path: Path, content: bytes) -> None:
    """In one line, which the monitor logs before it goes on with the old list."""
    path = tmp_path / "nodes"
    path.write_bytes(content)
    with pytest.raises(SettingsError):
        await NodesFile(path).nodes()


@pytest.mark.parametrize(("text", "weights"), [("", ()), ("pg2=3, pg3=1", (("pg2", 3), ("pg3", 1)))])
def test_weights_are_read_by_name(text: str, weights: tuple[tuple[str, int], ...]) -> None:
    """Nodes that are not named have a weight of one."""
    nodes = "pg1=db:1,pg2=db:2,pg3=db:3"
    settings = Settings.from_environment({**ENVIRON, "ATELIER_NODES": nodes, "ATELIER_WEIGHTS": text})
    assert settings.reads.weights == weights


def test_weights_of_nodes_that_are_not_there_are_refused() -> None:
    """A name that is misspelt shall not go unnoticed."""
    with pytest.raises(SettingsError, match="pg4"):
        Settings.from_environment({**ENVIRON, "ATELIER_NODES": "pg1=db:1", "ATELIER_WEIGHTS": "pg4=2"})


@pytest.mark.parametrize("text", ["pg2", "pg2=", "pg2=0", "pg2=1001", "pg2=x", "pg2=1.5", "pg2=٣"])
def test_weights_that_are_none_are_refused(text: str) -> None:
    """In one line."""
    with pytest.raises(SettingsError, match="ATELIER_WEIGHTS"):
        Settings.from_environment({**ENVIRON, "ATELIER_NODES": "pg1=db:1", "ATELIER_WEIGHTS": text})
