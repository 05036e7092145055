"""Episodes in memory: selection, joining, and errors for invalid arrays."""

from __future__ import annotations

import numpy as np
import pytest
from episode_samples import make_episodes

from ebt_policy.data.episodes import EpisodeError, Episodes


def test_episodes_are_indexed_and_selected():
    eps = make_episodes((4, 6, 3))
    assert len(eps) == 3
    assert eps.lengths.tolist() == [4, 6, 3]
    np.testing.assert_array_equal(eps.episode(1)["action"], eps.arrays["action"][4:10])
    np.testing.assert_array_equal(eps.episode(-1)["action"], eps.arrays["action"][10:])
    with pytest.raises(IndexError):
        eps.episode(3)
    picked = eps.select([2, 0])
    assert picked.ends.tolist() == [3, 7]
    np.testing.assert_array_equal(picked.episode(1)["image"], eps.episode(0)["image"])
    with pytest.raises(EpisodeError, match="no episodes"):
        eps.select([])


def test_joined_episodes_keep_their_order():
    eps = make_episodes((4, 6, 3))
    joined = eps.select([2]) + eps.select([0, 1])
    assert joined.ends.tolist() == [3, 7, 13]
    np.testing.assert_array_equal(joined.episode(2)["action"], eps.episode(1)["action"])
    with pytest.raises(EpisodeError, match="Cannot join"):
        eps + Episodes({"action": eps.arrays["action"]}, eps.ends)


@pytest.mark.parametrize(
    ("arrays", "ends", "message"),
    [
        ({"a": np.zeros((3, 1))}, [], "no episodes"),
        ({"a": np.zeros((3, 1))}, [[3]], "no episodes"),
        ({"a": np.zeros((3, 1))}, [-1, 3], "strictly increasing"),
        ({"a": np.zeros((3, 1))}, [0, 3], "strictly increasing"),
        ({"a": np.zeros((3, 1))}, [2, 2, 3], "strictly increasing"),
        ({"a": np.zeros((2, 1))}, [3], '"a" has shape .2, 1.'),
        ({"a": np.array(["x", "y"])}, [2], '"a" has type'),
        ({"a": np.zeros((2, 0))}, [2], '"a" has shape .2, 0., which has no values'),
        (
            {"a": np.array([[0.0], [1.0], [np.nan]])},
            [1, 3],
            r'"a" has NaN or infinity in float32, first nan in row 2 \(episode 1\)',
        ),
        ({"a": np.array([[0.0], [-np.inf]])}, [2], "first -inf in row 1"),
        ({"a": np.array([0.0, 1e300])}, [2], r"first 1e\+300 in row 1"),  # infinite in float32
        ({"a": np.zeros(3)}, [1.5, 3.0], "must be integers, not float64"),
    ],
)
def test_invalid_episodes_are_refused(arrays, ends, message):
    with pytest.raises(EpisodeError, match=message):
        Episodes(arrays, np.array(ends))


def test_all_invalid_arrays_are_listed_in_one_error():
    arrays = {f"a{i}": np.full((2, 1), np.nan) for i in range(7)}
    with pytest.raises(EpisodeError, match=r'"a0" has .*"a4" has .* And 2 more\.$') as caught:
        Episodes(arrays, np.array([2]))
    assert '"a5"' not in str(caught.value)
