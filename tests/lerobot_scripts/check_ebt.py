"""Use a policy of the plug-in: ``python check_ebt.py PRETRAINED_MODEL``."""

import sys
from types import SimpleNamespace

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.rollout.inference.rtc import supports_rtc_inference
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot_policy_ebt.fitting import fit_to_dataset

register_third_party_plugins()
config = PreTrainedConfig.from_pretrained(sys.argv[1])
policy = get_policy_class(config.type).from_pretrained(sys.argv[1])
preprocessor, postprocessor = make_pre_post_processors(config, sys.argv[1])
rows, steps, horizon = 3, config.n_obs_steps, config.horizon
action_dim = config.output_features["action"].shape[0]

# Options that cannot be changed after training are refused.
for option in ("relative_actions=false", "vision=resnet18", "resize_shape=[96,96]", "size=xs"):
    changed = PreTrainedConfig.from_pretrained(sys.argv[1], cli_overrides=[f"--{option}"])
    try:
        type(policy)(changed)
    except ValueError as error:
        assert f"--policy.{option.partition('=')[0]}=" in str(error), error
    else:
        raise AssertionError(f"{option} was ignored")

# Only an unreadable data set is explained by an incomplete copy.
features = {"input_features": config.input_features, "output_features": config.output_features}
for size, is_incomplete in (("unknown", False), (config.size, True)):
    new = type(config)(size=size, vision="small", device="cpu", **features)
    try:
        fit_to_dataset(new, SimpleNamespace(root="nowhere", features={}))
    except ValueError as error:
        assert ("need a complete copy" in str(error)) == is_incomplete, error
    else:
        raise AssertionError("fitted to nothing")


def observation(seed: int) -> dict[str, torch.Tensor]:
    """Return one observation of several environments."""
    generator = torch.Generator().manual_seed(seed)
    return preprocessor({
        key: torch.rand(rows, *feature.shape, generator=generator)
        for key, feature in config.input_features.items()
    })  # fmt: skip


# Actions come from chunks, of which n_action_steps are executed, also in the inference mode.
policy.reset()
with torch.inference_mode():
    torch.manual_seed(0)
    actions = [postprocessor(policy.select_action(observation(i))) for i in range(3)]
assert all(action.shape == (rows, action_dim) for action in actions)
torch.manual_seed(0)
first = {key: torch.stack([value] * steps, 1) for key, value in observation(0).items()
         if isinstance(value, torch.Tensor)}  # fmt: skip
chunk = policy.predict_action_chunk(first)
assert chunk.shape == (rows, horizon - steps + 1, action_dim)
for i, action in enumerate(actions):
    torch.testing.assert_close(action, chunk[:, i])

# Real-time chunking: a chunk begins with the actions that are executed meanwhile.
assert supports_rtc_inference(policy)
left_over = chunk[:, 3:]
prefixes = []
predict = policy._predictor.predict_on_device


def spy(obs, constraints):
    """Keep the prefix of a prediction."""
    prefixes.append(constraints.prefix)
    return predict(obs, constraints=constraints)


policy._predictor.predict_on_device = spy
padded = torch.nn.functional.pad(left_over, (0, 0, 0, 9))
for previous in (left_over, padded, left_over[0], left_over[:, :0], None):
    for delay in (0, 4, 20):  # more actions than are left over are never committed
        policy._chunk = chunk
        new = policy.predict_action_chunk(
            observation(1), inference_delay=delay, prev_chunk_left_over=previous
        )
        given = 0 if previous is None else previous.shape[-2]
        count = min(delay, left_over.shape[1], given)
        if not count:
            assert prefixes[-1] is None
            continue
        committed = previous.expand(rows, -1, -1)[:, :count]
        torch.testing.assert_close(new[:, :count], committed)
        assert prefixes[-1].shape[1] == steps - 1 + count
        torch.testing.assert_close(prefixes[-1][:, steps - 1 :], committed)
        if previous.ndim == 3 and steps > 1:  # the actions before them were executed
            torch.testing.assert_close(prefixes[-1][:, : steps - 1], chunk[:, 4 - steps : 3])
policy.reset()  # without the earlier chunk, trailing zeros are padding, too
policy.predict_action_chunk(observation(1), inference_delay=20, prev_chunk_left_over=padded)
assert prefixes[-1].shape[1] == steps - 1 + left_over.shape[1]
del policy._predictor.predict_on_device


# Predictions use the averaged weights.
def seeded_chunk() -> torch.Tensor:
    torch.manual_seed(1)
    return policy.predict_action_chunk(first)


expected = seeded_chunk()
with torch.no_grad():
    weight = next(policy.model.parameters())
    weight += 1
    torch.testing.assert_close(seeded_chunk(), expected)
    weight -= 1

# Gradients reach the trained weights only; the average follows the update.
policy.train()
before = {name: p.clone() for name, p in policy.named_parameters()}
actions = torch.rand(rows, horizon, action_dim)
loss, metrics = policy.forward({**first, "action": actions})
loss.backward()
assert all(isinstance(value, float) for value in metrics.values())
optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
optimizer.step()
policy.update()
changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
assert any(name.startswith("averaged.") for name in changed)
assert any(name.startswith("model.") for name in changed)
print("checked")
