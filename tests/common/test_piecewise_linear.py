import numpy as np
import pytest
import torch

from tml.common.modules.piecewise_linear import PiecewiseLinear


def test_a_column_is_the_share_of_its_bin_below_the_value():
    encode = PiecewiseLinear([0], [[0.0, 2.0, 6.0]], [2])
    values = torch.tensor([[-1.0], [0.0], [1.0], [2.0], [3.0], [6.0], [9.0]])
    expected = [[0, 0], [0, 0], [0.5, 0], [1, 0], [1, 0.25], [1, 1], [1, 1]]
    assert encode(values).tolist() == expected


def test_the_columns_times_the_bins_widths_give_the_value_cut_to_the_boundaries():
    rng = np.random.default_rng(0)
    edges = [np.sort(rng.normal(size=size)).astype(np.float32) for size in (5, 2, 9)]
    encode = PiecewiseLinear([2, 0, 1], [e.tolist() for e in edges], [4, 1, 8])
    values = rng.normal(size=(200, 3)).astype(np.float32) * 2
    found = encode(torch.from_numpy(values)).numpy()
    assert found.shape == (200, 13)
    for feature, (column, columns) in enumerate(zip([2, 0, 1], np.split(found, [4, 5], axis=1), strict=True)):
        low, high = edges[feature][[0, -1]]
        np.testing.assert_allclose(
            low + columns @ np.diff(edges[feature]), np.clip(values[:, column], low, high), atol=1e-5
        )


def test_a_sum_over_columns_is_numpys_interpolation():
    edges, heights = [-3.0, 0.0, 1.0, 10.0], np.array([2.0, -1.0, 0.5, 4.0])
    encode = PiecewiseLinear([0], [edges], [3])
    values = np.linspace(-5, 12, 101, dtype=np.float32)
    found = heights[0] + encode(torch.from_numpy(values)[:, None]).numpy() @ np.diff(heights)
    np.testing.assert_allclose(found, np.interp(values, edges, heights), atol=1e-5)


@pytest.mark.parametrize("edges", [[], [1.0], [1.0, 1.0], [1.0, 1.0, 3.0], [1.0, 3.0]])
def test_bins_without_width_and_absent_ones_are_zeros(edges):
    encode = PiecewiseLinear([0], [edges], [3])
    found = encode(torch.tensor([[2.0], [float("nan")], [5.0]]))
    share = 0.5 if 3.0 in edges else 0.0
    assert found.tolist() == [[share, 0, 0], [0, 0, 0], [2 * share, 0, 0]]


def test_a_missing_value_is_zeros_and_others_are_not_touched_by_it():
    encode = PiecewiseLinear([0, 1], [[0.0, 1.0], [0.0, 1.0]], [1, 1])
    assert encode(torch.tensor([[float("nan"), 0.5]])).tolist() == [[0.0, 0.5]]
