"""The two-stream transformer: independent units, shared context and second derivatives.

Shapes: B batch, U units, L tokens, C features, K context tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscapes import descend

from ebt_policy.energy import Descent, LevelSchedule, TwoStreamTransformer
from ebt_policy.energy.attention import Attention, double_backward_attention, sinusoidal
from ebt_policy.energy.two_stream import TransformerConfig

B, U, L, C, K, OBS = 2, 4, 3, 2, 5, 6


def build(output: Any = "energy", level=False, **size):
    torch.manual_seed(0)
    width = TransformerConfig(**{"width": 16, "heads": 2, "layers": 2, **size})
    return TwoStreamTransformer(OBS, K, C, L, width, output=output, level=level)


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, K, OBS, generator=g), torch.randn(B, U, L, C, generator=g)


# -- units ----------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None, derandomize=True)
@given(unit=st.integers(0, U - 1), level=st.booleans(), size=st.sampled_from([0.1, 10.0, 1e3]))
def test_units_are_independent_of_each_other(unit, level, size):
    net = build(level=level)
    obs, x = inputs()
    g = torch.rand(B, U) if level else None
    moved = x.clone()
    moved[:, unit] += size
    with torch.no_grad():
        context = net.encode(obs)
        before, after = net(context, x, g), net(context, moved, g)
    others = torch.arange(U) != unit
    torch.testing.assert_close(after[:, others], before[:, others], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(after[:, unit], before[:, unit], rtol=1e-6, atol=1e-6)


def test_energy_of_a_unit_has_no_gradient_in_the_others():
    net, (obs, x) = build(), inputs()
    x.requires_grad_()
    energy = net(net.encode(obs), x)
    for u in range(U):
        (gradient,) = torch.autograd.grad(energy[:, u].sum(), x, retain_graph=True)
        others = torch.arange(U) != u
        assert (gradient[:, others] == 0).all() and (gradient[:, u] != 0).all()


def test_unit_output_does_not_depend_on_other_units():
    net, (obs, x) = build(), inputs()
    with torch.no_grad():
        context = net.encode(obs)
        batched = net(context, x)
        alone = torch.cat([net(context, x[:, u : u + 1]) for u in range(U)], dim=1)
        by_row = torch.cat([net(net.encode(obs[b : b + 1]), x[b : b + 1]) for b in range(B)])
    torch.testing.assert_close(alone, batched)
    torch.testing.assert_close(by_row, batched)


def test_energy_depends_on_context_order_of_tokens_and_level():
    net, (obs, x) = build(level=True), inputs()
    level = torch.full((B, U), 0.3)
    with torch.no_grad():
        energy = net(net.encode(obs), x, level)
        assert not torch.allclose(net(net.encode(obs + 0.1), x, level), energy)
        assert not torch.allclose(net(net.encode(obs.flip(1)), x, level), energy)
        assert not torch.allclose(net(net.encode(obs), x.flip(2), level), energy)
        assert not torch.allclose(net(net.encode(obs), x, level + 0.1), energy)


def test_context_encoded_once_equals_context_encoded_at_every_step():
    net, (obs, x) = build(), inputs()
    context = net.encode(obs)
    calls = []
    net.context_in.register_forward_hook(lambda *_: calls.append(1))
    once = descend(lambda x, g: net(context, x, g), x, 3, 0.1)
    assert not calls
    again = descend(lambda x, g: net(net.encode(obs), x, g), x, 3, 0.1)
    assert len(calls) == 4
    torch.testing.assert_close(once.candidate, again.candidate)


@pytest.mark.parametrize("output", ["energy", "vector"])
def test_output_is_one_energy_or_vector_for_each_unit(output):
    net, (obs, x) = build(output, layers=1), inputs()
    assert net(net.encode(obs), x).shape == ((B, U) if output == "energy" else (B, U, L, C))


def test_features_are_the_mean_over_tokens_of_each_block():
    net, (obs, x) = build(layers=3), inputs()
    outputs = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, arguments, result: outputs.append(result[0]))
    with torch.no_grad():
        context = net.encode(obs)
        outputs.clear()
        features = net.features(context, x)
    assert features.shape == (B, U, 3, 16)
    want = torch.stack([h.view(B, U, L, 16).mean(2) for h in outputs], dim=2)
    torch.testing.assert_close(features, want)


def test_energy_is_the_product_of_candidate_and_vector():
    energy, vector, (obs, x) = build("energy"), build("vector"), inputs()
    vector.load_state_dict(energy.state_dict())
    want = (x * vector(vector.encode(obs), x)).sum((-2, -1))
    torch.testing.assert_close(energy(energy.encode(obs), x), want)


@pytest.mark.parametrize("output", ["energy", "vector"])
def test_wide_tokens_use_a_skip_connection(output):
    """The skip adds a share of the candidate to the vector, and of its square to the energy."""
    torch.manual_seed(0)
    wide = TwoStreamTransformer(
        OBS, K, 20, L, TransformerConfig(width=16, heads=2, layers=1), output=output, level=True
    )
    obs, x, level = inputs()[0], torch.randn(B, U, L, 20), torch.rand(B, U)
    context = wide.encode(obs)
    before = wide(context, x, level)
    assert wide.skip is not None and build().skip is None
    torch.nn.init.constant_(wide.skip.bias, 0.5)
    added = 0.5 * (x.square().sum((-2, -1)) if output == "energy" else x)
    torch.testing.assert_close(wide(context, x, level) - before, added, rtol=1e-4, atol=1e-4)


# -- derivatives ----------------------------------------------------------------------------------


def first_derivative(net, obs, x):
    leaf = x.clone().requires_grad_()
    energy = net(net.encode(obs), leaf)
    return torch.autograd.grad(energy.sum(), leaf, create_graph=True)[0]


def test_math_attention_is_used_for_second_derivatives():
    net, (obs, x) = build(), inputs()
    with double_backward_attention(False), pytest.raises(RuntimeError, match="attention"):
        first_derivative(net, obs, x).square().sum().backward()
    with double_backward_attention(True):
        first_derivative(net, obs, x).square().sum().backward()
    context = net.encode(obs)
    net.zero_grad()
    result = descend(lambda x, g: net(context, x, g), x, 2, 0.1)
    result.candidate.square().sum().backward()
    for name, parameter in net.blocks.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert net.context_in.weight.grad is not None


def test_second_derivative_equals_finite_differences():
    net, (obs, x) = build(layers=1).double(), inputs()
    obs, x = obs.double(), x.double()[:1, :1]
    weight = net.blocks[0].get_parameter("attention.qkv.weight")

    def gradient_norm(w):
        with torch.no_grad():
            weight.copy_(w)
        with double_backward_attention(True):
            return first_derivative(net, obs[:1], x).square().sum()

    start = weight.detach().clone()
    (analytic,) = torch.autograd.grad(gradient_norm(start), weight)
    along = torch.randn(weight.shape, dtype=torch.float64)
    ahead, behind = (gradient_norm(start + s * 1e-5 * along).item() for s in (1, -1))
    assert (analytic * along).sum().item() == pytest.approx((ahead - behind) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_with_fused_attention_equals_training_with_math_attention(mode):
    net, (obs, x) = build(level=True), inputs()
    descent = Descent(LevelSchedule(torch.linspace(0, 1, 4), 0.1))
    context = net.encode(obs)
    slow = descent(lambda x, g: net(context, x, g), x)
    with mode():
        fast = descent(lambda x, g: net(context, x, g), x)
    torch.testing.assert_close(fast.candidate, slow.candidate, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast.grad_norms, slow.grad_norms, rtol=1e-5, atol=1e-6)
    assert not fast.energies.requires_grad and slow.energies.requires_grad


@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
def test_compiled_inference_equals_eager():
    net, (obs, x) = build(), inputs()
    with torch.no_grad():
        energy = torch.compile(lambda obs, x: net(net.encode(obs), x))
        torch.testing.assert_close(energy(obs, x), net(net.encode(obs), x))


# -- parts ----------------------------------------------------------------------------------------


def test_cached_tokens_equal_recomputed_tokens():
    torch.manual_seed(0)
    attention = Attention(8, 2)
    before, later = torch.randn(1, 4, 8), torch.randn(1, 3, 8)
    with torch.no_grad():
        joint, _ = attention(torch.cat([before, later], dim=1))
        _, past = attention(before)
        torch.testing.assert_close(attention(later, past)[0], joint[:, 4:])


def test_levels_have_distinct_smooth_features():
    level = torch.linspace(0, 1, 101)
    features = sinusoidal(level, 16)
    assert features.shape == (101, 16) and features.abs().max() <= 1
    assert torch.cdist(features, features).fill_diagonal_(1).min() > 0.01
    assert torch.equal(features[0], torch.tensor([0.0] * 8 + [1.0] * 8))


# -- invalid input --------------------------------------------------------------------------------


def test_level_is_required_only_by_level_conditioned_networks():
    obs, x = inputs()
    with_level, without = build(level=True), build()
    with pytest.raises(ValueError, match="needs a level"):
        with_level(with_level.encode(obs), x)
    with pytest.raises(ValueError, match="takes no level"):
        without(without.encode(obs), x, torch.zeros(B, U))


@pytest.mark.parametrize(
    "shape", [(B, U, 1, C), (B, U, L, C + 1), (B, L, C), (B, U, L + 1, C), (B, U, L * C)]
)
def test_candidates_of_another_shape_are_refused(shape):
    net, (obs, _) = build(), inputs()
    with pytest.raises(ValueError, match=rf"candidates must have shape \(B, U, {L}, {C}\)"):
        net(net.encode(obs), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(B, 1, OBS), (B, K + 1, OBS), (K, OBS), (B, K, OBS + 1)])
def test_contexts_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=rf"context must have shape \(B, {K}, {OBS}\)"):
        build().encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 18}, "multiple of twice heads"),
        ({"heads": 3}, "multiple of twice heads"),
        ({"heads": 0}, "width, heads and layers must be positive"),
        ({"width": 0}, "width, heads and layers must be positive"),
        ({"layers": 0}, "width, heads and layers must be positive"),
    ],
)
def test_invalid_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
