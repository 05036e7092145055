"""Predict with the plug-in: ``python predict_ebt.py PRETRAINED_MODEL OBS.npz CHUNK.npy``."""

import sys

import numpy as np
import torch
from lerobot_policy_ebt.modeling_ebt import EBTPolicy

folder, observation, file = sys.argv[1:]
policy = EBTPolicy.from_pretrained(folder)
with np.load(observation) as arrays:
    obs = torch.from_numpy(arrays["obs"])
torch.manual_seed(0)
np.save(file, policy.predict_action_chunk({"observation.state": obs}).numpy())
