"""The options of a run that name its policy."""

from __future__ import annotations

import pytest

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.run_options import RunOptions

ADDRESS = "ws://127.0.0.1:8000"


def test_a_policy_on_a_server_needs_no_checkpoint():
    assert RunOptions(policy=ADDRESS).source_name == "server"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"missing required option checkpoint=\.\.\. for mode=run"),
        ({"policy": ADDRESS, "checkpoint": "runs/a"}, "checkpoint= and policy= exclude each other"),
        ({"policy": ADDRESS, "compile": True}, "compile the policy on the server"),
    ],
)
def test_options_that_exclude_each_other(options, words):
    with pytest.raises(ConfigError, match=words):
        RunOptions(**options)
