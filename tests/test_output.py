"""Output folders: checks before long work, locks, and no traces of failed runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebt_policy.errors import ConfigError
from ebt_policy.io.output import check_free_space, exclusive, output_folder

HOLD = """
import sys, time
from pathlib import Path
from ebt_policy.io.output import exclusive
with exclusive(Path(sys.argv[1]), Path("that place")):
    print("locked", flush=True)
    time.sleep(60)
"""


def hold(lock: Path) -> subprocess.Popen[str]:
    """Start another process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    return process


def test_lock_names_its_owner_and_is_released_on_exit(tmp_path):
    process = hold(tmp_path / ".lock")
    try:
        message = rf"that place is in use by process {process.pid} on \S+; wait"
        with (
            pytest.raises(ConfigError, match=message),
            exclusive(tmp_path / ".lock", Path("that place")),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / ".lock").exists()  # a killed process leaves its file behind
    with exclusive(tmp_path / ".lock", Path("that place")):
        assert (tmp_path / ".lock").read_text().split()[0] == str(os.getpid())
    assert not (tmp_path / ".lock").exists()


def test_output_folder_is_locked_by_one_process(tmp_path):
    folder = tmp_path / "results"
    with output_folder(folder, "output"):
        with pytest.raises(ConfigError, match="in use by process"), output_folder(folder, "output"):
            pass
        (folder / "table.md").write_text("kept")
    assert [file.name for file in folder.iterdir()] == ["table.md"]


def test_a_failed_run_leaves_no_empty_folders(tmp_path):
    (tmp_path / "runs").mkdir()
    folder = tmp_path / "runs" / "push_t" / "first"
    with pytest.raises(ConfigError, match="later"), output_folder(folder, "run_dir"):
        raise ConfigError("found later")
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


@pytest.mark.parametrize("name", ["file/inner", "x" * 300, "nul\0"])
def test_impossible_folder_error_names_the_option(tmp_path, name):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"^output=.* cannot be written \(.+\); give another"),
        output_folder(tmp_path / name, "output"),
    ):
        raise AssertionError("entered")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    (tmp_path / "fixed").mkdir(mode=0o500)
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        output_folder(tmp_path / "fixed", "output"),
    ):
        raise AssertionError("entered")


def test_full_disk_is_reported_before_the_work(tmp_path):
    with pytest.raises(ConfigError, match=r"run_dir=.* needs 1,073,741,824 MiB of free disk space"):
        check_free_space(tmp_path, 1 << 50, "run_dir")
