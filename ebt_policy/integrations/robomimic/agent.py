"""A policy of robomimic in a process of its own: ``python -m ....agent FILE.pth``.

Opening the file can run code that it contains, because it is a pickle. Requests arrive on the
standard input and answers leave on the standard output, as MessagePack with NumPy arrays (see
`ebt_policy.io.messages`), each after its length (4 bytes). The first answer describes the policy.
See `ebt_policy.policies.robomimic_checkpoint`, which starts this program.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebt_policy.cli.composition import compose_config
from ebt_policy.data.robomimic_controller import check_delta_actions, parse_controller
from ebt_policy.envs.robosuite_tasks import (
    OBSERVATION_VERSION,
    SCENES,
    Scene,
    to_six_dimensional,
)
from ebt_policy.errors import ConfigError, UserError
from ebt_policy.integrations.robomimic.compatibility import prepare
from ebt_policy.io.messages import read_message, write_message
from ebt_policy.policies.robomimic_checkpoint import MAX_EPISODES


class Agent:
    """A policy of robomimic that plays several episodes at the same time.

    Args:
        file: the checkpoint.

    Raises:
        ConfigError: its task or its observations are not supported.
    """

    def __init__(self, file: str) -> None:
        from robomimic.utils import file_utils, obs_utils  # pyright: ignore

        # PyTorch refuses pickles by default; the user has agreed to this one.
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)
        self.policy, _ = file_utils.policy_from_checkpoint(
            ckpt_dict=checkpoint, device=torch.device("cpu")
        )
        self.policy.policy.optimizers = {}  # not needed, and copied with the policy
        config = json.loads(checkpoint["config"])
        shapes = checkpoint["shape_metadata"]["all_shapes"]
        self.cameras = [key for key in shapes if obs_utils.key_is_obs_modality(key, "rgb")]
        self.keys = [key for key in shapes if key not in self.cameras]
        self.widths = [int(np.prod(shapes[key])) for key in self.keys]
        if modalities := [
            key for key in self.keys if not obs_utils.key_is_obs_modality(key, "low_dim")
        ]:
            raise ConfigError(
                f"{file} observes {modalities[0]}, which is neither low-dimensional nor an image; "
                "train it without this observation."
            )
        self.frames = int(config["train"].get("frame_stack", 1))
        self.scene = self._check_environment(Path(file), checkpoint["env_metadata"])
        self._episodes: OrderedDict[int, tuple[Any, torch.Tensor]] = OrderedDict()
        self.description = self._describe(file, checkpoint, config, shapes)

    def _describe(
        self, file: str, checkpoint: dict[str, Any], config: dict[str, Any], shapes: Any
    ) -> dict[str, Any]:
        task = compose_config("train", [f"task={self.scene.folder}"])["task"]
        actions = "absolute" if self.is_absolute else "delta"
        kwargs: dict[str, Any] = {"actions": actions, "keys": self.keys}
        if self.cameras:
            height, width = shapes[self.cameras[0]][1:]
            if height != width or any(shapes[c][1:] != [height, width] for c in self.cameras):
                sizes = ", ".join(f"{c} {shapes[c][1:]}" for c in self.cameras)
                raise ConfigError(
                    f"{file} has the cameras {sizes}; only square images of one size are supported."
                )
            kwargs |= {"cameras": [name.removesuffix("_image") for name in self.cameras],
                       "image_size": height}  # fmt: skip
        task |= {
            "actions": actions, "relative_to": None, "cameras": kwargs.get("cameras"),
            "horizon": self.frames, "n_obs_steps": self.frames, "n_action_steps": 1,
            "env": {**task["env"], "kwargs": kwargs},
        }  # fmt: skip
        networks = self.policy.policy.nets
        return {
            "name": config["algo_name"],
            "parameters": sum(p.numel() for p in networks.parameters() if p.requires_grad),
            "seed": config["train"]["seed"],
            "task": task,
        }

    def _check_environment(self, file: Path, metadata: dict[str, Any]) -> Scene:
        """Return the task of a checkpoint whose actions and observations mean the same here."""
        scenes = {scene.env_name: scene for scene in SCENES.values()}
        if metadata["env_name"] not in scenes:
            raise ConfigError(
                f"{file} was trained on {metadata['env_name']}; available are {', '.join(scenes)}."
            )
        scene = scenes[metadata["env_name"]]
        controller = parse_controller(file, json.dumps(metadata), scene)
        self.is_absolute = not controller.relative
        if controller.relative:
            check_delta_actions(file, controller)
        has_other_layout = scene.poses[controller.version] != scene.poses[OBSERVATION_VERSION]
        if "object" in self.keys and has_other_layout:
            raise ConfigError(
                f'{file} observes "object" of robosuite {controller.version}, which has another '
                f"order in robosuite {OBSERVATION_VERSION}; train it on data of this version."
            )
        return scene

    def act(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return "actions" (B, A) for a batch of observations.

        Args:
            request: "episodes" (B,) numbers of the episodes, "seeds" (B,) of their noise, and
                "obs" with the arrays (B, To, ...) of an observation.
        """
        actions = []
        for row, (episode, seed) in enumerate(
            zip(request["episodes"], request["seeds"], strict=True)
        ):
            policy, noise = self._episode(episode, seed)
            torch.set_rng_state(noise)
            actions.append(policy(ob=self._observation(request["obs"], row)))
            self._episodes[episode] = (policy, torch.get_rng_state())
        result = np.stack(actions)
        return {"actions": to_six_dimensional(result) if self.is_absolute else result}

    def _episode(self, episode: int, seed: int) -> tuple[Any, torch.Tensor]:
        """Return the policy of an episode, and the state of its random numbers."""
        if episode in self._episodes:
            self._episodes.move_to_end(episode)
            return self._episodes[episode]
        if len(self._episodes) < MAX_EPISODES:
            networks = self.policy.policy.nets  # shared, because they do not change
            policy = copy.deepcopy(self.policy, {id(networks): networks})
        else:  # the oldest episode is over
            policy = self._episodes.popitem(last=False)[1][0]
        policy.start_episode()
        return policy, torch.manual_seed(seed).get_state()

    def _observation(self, obs: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
        """Return an observation as robomimic's environments do."""
        from robomimic.utils import obs_utils  # pyright: ignore

        parts = np.split(obs["obs"][row], np.cumsum(self.widths)[:-1], axis=-1)
        named = dict(zip(self.keys, parts, strict=True))
        for key in self.cameras:
            frames = obs[key.removesuffix("_image")][row]
            named[key] = obs_utils.process_obs(frames, obs_key=key)
        return {key: value if self.frames > 1 else value[0] for key, value in named.items()}


def main() -> None:
    """Answer requests until the standard input ends."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # robomimic prints
    torch.set_num_threads(1)
    try:
        prepare()
        agent = Agent(sys.argv[1])
    except UserError as error:
        write_message(output, {"error": str(error)})
        return
    write_message(output, agent.description)
    while (request := read_message(sys.stdin.buffer)) is not None:
        write_message(output, agent.act(request))


if __name__ == "__main__":
    main()
