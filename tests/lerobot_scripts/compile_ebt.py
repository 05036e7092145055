"""Compile training and prediction with LeRobot's PyTorch: ``compile_ebt.py CHECKPOINT POLICY``."""

from __future__ import annotations

import sys

import torch
from lerobot.rollout.context import _wrap_predict_action_chunk_with_torch_compile
from lerobot_policy_ebt.modeling_ebt import EBTPolicy

from ebt_policy.policies import load_policy

policy = load_policy(sys.argv[1]).requires_grad_(True)
obs = 250 + 30 * torch.rand(2, policy.shape.n_obs_steps, policy.shape.obs_dim)
actions = 250 + torch.rand(2, policy.shape.horizon, policy.shape.action_dim)
policy.compile(backend="aot_eager")
loss, _ = policy.training_loss(policy.normalize({"obs": obs, "action": actions}))
loss.backward()
policy.requires_grad_(False)._compiled = torch.compile(policy._search, backend="aot_eager")
policy.predict_chunk({"obs": obs})

plug_in = EBTPolicy.from_pretrained(sys.argv[2])
features = {
    name: 250 + torch.rand(1, *f.shape) for name, f in plug_in.config.input_features.items()
}
torch.manual_seed(0)
expected = plug_in.predict_action_chunk(features)
assert _wrap_predict_action_chunk_with_torch_compile(plug_in, backend="aot_eager", mode="default")
torch.manual_seed(0)
torch.testing.assert_close(plug_in.predict_action_chunk(features), expected)
print("compiled")
