"""The commands as a person runs them: plain words, exit codes, one line for what went wrong."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atelier.loading.generate import generate_catalogue
from atelier.loading.seed import DEMO_FOLDER
from tests.importing.conftest import Database
from tests.random_catalogue import write_random_catalogue


def start(database: Database, *arguments: str) -> "subprocess.Popen[str]":
    """Starts the real command over the cluster's folder."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
    command = [sys.executable, "-m", "atelier.cli.main", *arguments]
    if arguments[0] != "generate":
        command.append(f"--data-dir={database.cluster.folder.path}")
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(database: Database, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output, and what was told beside it."""
    process = start(database, *arguments)
    output, told = process.communicate(timeout=60)
    return process.returncode, output, told


def test_generated_faults_are_summed_up_and_listed(database: Database, tmp_path: Path) -> None:
    """From nothing to a report, by commands alone."""
    made, rejects = tmp_path / "made", tmp_path / "rejects.csv"
    code, output, _ = run(database, "generate", str(made), "--products=40", "--seed=3", "--dirty")
    assert (code, output.startswith("40 product, ")) == (0, True)
    code, output, told = run(database, "import", str(made), f"--rejects={rejects}")
    assert code == 0
    assert "1 x id: duplicate" in output
    assert "is in place" in output.splitlines()[-2]
    assert output.splitlines()[-1] == f"the refused rows are listed in {rejects}"
    assert "swapping the new catalogue in" in told
    assert rejects.read_text() == (made / "expected-rejects.csv").read_text()


def test_trial_says_that_nothing_was_changed(database: Database, tmp_path: Path) -> None:
    """`--dry-run`."""
    code, output, _ = run(database, "import", str(DEMO_FOLDER), "--dry-run", f"--rejects={tmp_path / 'r.csv'}")
    assert code == 0
    assert output.splitlines()[-1].endswith("nothing was changed; 0 rows would be refused")


def test_export_goes_into_an_empty_folder(database: Database, tmp_path: Path) -> None:
    """The node is named; files that are there are not written over."""
    database.load(DEMO_FOLDER)
    code, output, _ = run(database, "export", str(tmp_path / "out"))
    assert (code, output) == (0, f"exported from pg1 to {tmp_path / 'out'}\n")
    code, _, told = run(database, "export", str(tmp_path / "out"))
    assert code == 1
    assert told == f"atelier: {tmp_path / 'out' / 'product.csv'} is there already; export into an empty folder\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file for product, styles, skus, photos, related, features"),
        ({"skus": "id,styleId,size\n"}, "skus: no column 'quantity'"),
    ],
)
def test_wrong_files_end_in_one_line(database: Database, tmp_path: Path, files: dict[str, str], message: str) -> None:
    """No traceback, and an exit code."""
    if files:
        write_random_catalogue(tmp_path, seed=1)
    for title, text in files.items():
        (tmp_path / f"{title}.csv").write_text(text)
    code, _, told = run(database, "import", str(tmp_path), f"--rejects={tmp_path / 'rejects.csv'}")
    assert code == 1
    assert told.splitlines()[-1].startswith(f"atelier: {message}")
    assert "Traceback" not in told


def test_report_that_cannot_be_written_stops_the_import(database: Database, tmp_path: Path) -> None:
    """Before the swap: nobody should have to wonder what was refused."""
    before = database.value("select catalogue_id from current_catalogue")
    code, _, told = run(database, "import", str(DEMO_FOLDER), f"--rejects={tmp_path}/none/rejects.csv")
    assert code == 1
    assert told.splitlines()[-1] == f"atelier: {tmp_path}/none/rejects.csv cannot be written: No such file or directory"
    assert database.value("select catalogue_id from current_catalogue") == before


def test_ctrl_c_leaves_the_old_catalogue(database: Database, tmp_path: Path) -> None:
    """One line, exit code 130, and no side tables left."""
    before = database.load(DEMO_FOLDER).catalogue_id
    generate_catalogue(tmp_path, products=20_000, seed=1)
    process = start(database, "import", str(tmp_path), f"--rejects={tmp_path / 'rejects.csv'}")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("building keys and indexes of product"):
            process.send_signal(signal.SIGINT)
            break
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.splitlines()[-1] == "atelier: interrupted; the old catalogue is untouched"
    assert "Traceback" not in told
    assert database.value("select catalogue_id from current_catalogue") == before
    assert database.value("select count(*) from pg_namespace where nspname = 'atelier_import'") == 0
