"""Policies of robomimic in an evaluation: a checkpoint ``FILE.pth`` in a process of its own.

Checkpoints of robomimic are pickles, which can run any code when they are opened.

Shapes: B batch, To observations, A action dimension.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import weakref
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebt_policy.errors import ConfigError, UserError
from ebt_policy.io.messages import MessageError, read_message, write_message
from ebt_policy.policies.chunk import Chunk

MAX_EPISODES = 64  # that a policy plays at the same time
PROGRAM = "ebt_policy.integrations.robomimic.agent"


class RobomimicError(UserError, RuntimeError):
    """A checkpoint of robomimic that cannot be opened or played."""


class RobomimicPolicy:
    """A policy of robomimic, with the interface of `Policy` that evaluations use.

    Args:
        file: the checkpoint.
        allow_pickle: whether the user trusts the file.

    Raises:
        ConfigError: the file is missing, or not trusted.
        RobomimicError: robomimic is not installed, or the file cannot be opened.
    """

    inference = None

    def __init__(self, file: Path, *, allow_pickle: bool) -> None:
        if not file.is_file():
            raise ConfigError(f"there is no checkpoint at {file}.")
        if not allow_pickle:
            raise ConfigError(
                f"{file} is a pickle, which can run any code on this computer; if you trust it, "
                "add allow_pickle=true to ebt-eval."
            )
        self.file = file
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, str(file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        weakref.finalize(self, self._process.kill)
        description = self._receive()
        self.name = f"robomimic {description['name']}"
        self.parameter_count: int = description["parameters"]
        self.config: dict[str, Any] = {key: description[key] for key in ("task", "seed")}
        # Policies with a state have one for each episode, which its generator identifies.
        self._episodes: weakref.WeakKeyDictionary[torch.Generator, int] = (
            weakref.WeakKeyDictionary()
        )
        self._numbers = count()

    def configure_inference(self, **changes: Any) -> None:
        """Raise ConfigError if an option is changed, because there are none."""
        if changes:
            raise ConfigError(f"{self.file} has no inference option {', '.join(changes)}.")

    def predict_chunk(self, obs: dict[str, Tensor], *, generator: Any) -> Chunk:
        """Return the next action of each row as the last action of a chunk (B, To, A).

        Args:
            obs: as in `Policy.predict_chunk`, with the observation keys of robomimic joined.
            generator: a generator, or a list with one generator for each row, which identifies the
                row's episode.

        Raises:
            RobomimicError: there are too many episodes at the same time, or the process ended.
        """
        generators = generator if isinstance(generator, list) else [generator]
        if len(generators) > MAX_EPISODES:
            raise RobomimicError(
                f"policies of robomimic play at most {MAX_EPISODES} episodes at the same time, got "
                f"{len(generators)}; set workers={MAX_EPISODES}."
            )
        for entry in generators:
            if entry not in self._episodes:
                self._episodes[entry] = next(self._numbers)
        request = {
            "episodes": [self._episodes[entry] for entry in generators],
            "seeds": [entry.initial_seed() for entry in generators],
            "obs": {name: value.numpy() for name, value in obs.items()},
        }
        assert self._process.stdin is not None
        try:
            write_message(self._process.stdin, request)
        except BrokenPipeError as error:
            raise self._failure() from error
        actions = torch.from_numpy(self._receive()["actions"].copy()).float()
        steps = obs["obs"].shape[1]
        return Chunk(actions.unsqueeze(1).expand(-1, steps, -1), torch.ones(len(actions)))

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            message = read_message(self._process.stdout)
        except MessageError as error:
            raise self._failure() from error
        if message is None:
            raise self._failure()
        if "error" in message:
            raise RobomimicError(message["error"])
        return message

    def _failure(self) -> RobomimicError:
        """Return the error for a process that ended, with the last line that it printed."""
        self._process.kill()  # it has ended, or has sent a message that cannot be read
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or ["no message"]
        return RobomimicError(f"{self.file} cannot be played by robomimic ({lines[-1]}).")
