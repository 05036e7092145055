"""robomimic's programs with the algorithm ``ebt``.

    python -m ebt_policy.integrations.robomimic train --config FILE.json
    python -m ebt_policy.integrations.robomimic play --agent FILE.pth

``train`` is robomimic's ``scripts/train.py`` and ``play`` its ``scripts/run_trained_agent.py``,
with their options. A failed training ends with exit code 1, although robomimic only prints the
error.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from typing import Any

import torch

from ebt_policy.errors import UserError
from ebt_policy.integrations.robomimic.compatibility import prepare
from ebt_policy.io.paths import reason


def train(arguments: list[str]) -> None:
    """Run robomimic's training.

    Raises:
        SystemExit: the training failed; robomimic has printed the traceback.
    """
    from robomimic.scripts import train as script  # pyright: ignore

    parser = argparse.ArgumentParser("ebt_policy.integrations.robomimic train")
    parser.add_argument("--config", help="JSON configuration")
    parser.add_argument("--algo", default="ebt", help="algorithm, without a configuration")
    parser.add_argument("--name", help="name of the experiment")
    parser.add_argument("--dataset", help="HDF5 file")
    parser.add_argument("--debug", action="store_true", help="two epochs of three updates")
    errors: list[Exception] = []
    original: Any = script.train

    def recording_train(*args: Any, **kwargs: Any) -> None:
        try:
            original(*args, **kwargs)
        except Exception as error:
            errors.append(error)
            raise  # robomimic's main prints it

    script.train = recording_train
    set_threads = torch.set_num_threads
    if "OMP_NUM_THREADS" in os.environ:  # robomimic would set two threads
        torch.set_num_threads = lambda _: None
    terminal = sys.stdout, sys.stderr
    try:
        script.main(parser.parse_args(arguments))
    finally:
        script.train, torch.set_num_threads = original, set_threads
        sys.stdout, sys.stderr = terminal  # robomimic copies them to a file, also after its end
    if errors:
        sys.exit(f"error: the training failed ({reason(errors[0])}).")


def play(arguments: list[str]) -> None:
    """Run robomimic's program that plays episodes with a checkpoint."""
    sys.argv = ["ebt_policy.integrations.robomimic play", *arguments]
    runpy.run_module("robomimic.scripts.run_trained_agent", run_name="__main__", alter_sys=False)


PROGRAMS = {"train": train, "play": play}


def main(arguments: list[str]) -> None:
    """Run a program of robomimic.

    Raises:
        SystemExit: the program is unknown, or failed.
    """
    name, *rest = arguments or ["--help"]
    if name not in PROGRAMS:
        print((__doc__ or "").strip())
        sys.exit(0 if name in ("-h", "--help") else 2)
    try:
        prepare()
        PROGRAMS[name](rest)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
