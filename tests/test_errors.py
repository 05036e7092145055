"""The command line: user errors are one line, and bugs keep their traceback."""

from __future__ import annotations

import logging

import pytest

from ebt_policy.cli import report_errors
from ebt_policy.config import options
from ebt_policy.data.zarr_store import EpisodeError
from ebt_policy.energy import DescentError
from ebt_policy.envs.errors import EnvError
from ebt_policy.errors import ConfigError, OutputError, UserError
from ebt_policy.io.atomic_write import atomic_path, atomic_write
from ebt_policy.io.download import DownloadError
from ebt_policy.io.image_files import ImageError
from ebt_policy.language.data import TextError
from ebt_policy.models.base import CheckpointError
from ebt_policy.policies.task_config import PolicyTaskConfig
from ebt_policy.train import main
from ebt_policy.training.trainer import NonFiniteLoss
from ebt_policy.video.data import VideoError

USER_ERRORS = (
    ConfigError, OutputError, CheckpointError, EpisodeError, TextError, ImageError, VideoError,
    DownloadError, NonFiniteLoss,
)  # fmt: skip


@pytest.mark.parametrize("kind", [*USER_ERRORS, DescentError, EnvError])
def test_user_error_is_one_line(kind, capsys):
    with pytest.raises(SystemExit) as end, report_errors():
        raise kind("the option x must be 1, got [2].")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: the option x must be 1, got [2].\n"


@pytest.mark.parametrize("kind", USER_ERRORS)
def test_user_errors_have_one_base(kind):
    assert issubclass(kind, UserError)


@pytest.mark.parametrize("bug", [ValueError, OSError, FileNotFoundError, RuntimeError, KeyError])
def test_a_bug_is_not_caught(bug):
    with pytest.raises(bug, match="a bug"), report_errors():
        raise bug("a bug")


def test_bugs_in_training_keep_their_traceback(tiny_arguments, call_entry, monkeypatch):
    def broken(self):
        raise ValueError("a bug")

    monkeypatch.setattr(PolicyTaskConfig, "demonstrations", broken)
    with pytest.raises(ValueError, match="a bug"):
        call_entry(main, *tiny_arguments("run"))


def test_constructor_errors_become_configuration_errors():
    def build(steps: int) -> None:
        raise ValueError(f"steps must be at least 1, got {steps}.")

    with pytest.raises(ConfigError, match=r"^steps must be at least 1, got 0\.$"):
        options(build, {"steps": 0}, "model.inference")


def test_unwritable_file_is_named_and_the_old_file_is_kept(tmp_path):
    with pytest.raises(OutputError, match=r"^/.*/missing/a.json cannot be written \(No such file"):
        atomic_write(tmp_path / "missing" / "a.json", "new")
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(OutputError, match="No space left"), atomic_path(tmp_path / "a.json") as new:
        new.write_text("half")
        raise OSError(28, "No space left on device")
    assert (tmp_path / "a.json").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    atomic_write(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"


def test_log_messages_go_to_stderr_unchanged(capsys):
    with report_errors():
        logging.getLogger("ebt_policy.somewhere").warning("no compiler in %s", "/usr/[bin]")
    assert capsys.readouterr().err == "no compiler in /usr/[bin]\n"
