import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from tests.core.metric_rows import batches_of, value
from tml.common.errors import ConfigError, DataError
from tml.core import metrics as m


def grouped_rows(num_rows=400, num_groups=40, grades=2, seed=0, levels=8):
    rng = np.random.default_rng(seed)
    return {
        "probabilities": (rng.integers(0, levels, num_rows) / levels).astype(np.float32),
        "labels": rng.integers(0, grades, num_rows),
        "groups": rng.integers(0, num_groups, num_rows) + 2**60,
    }


def mean_ndcg(rows, k):
    found = []
    for group in np.unique(rows["groups"]):
        chosen = rows["groups"] == group
        gains = 2.0 ** rows["labels"][chosen] - 1
        if gains.any() and len(gains) > 1:
            found.append(ndcg_score(gains[None], rows["probabilities"][chosen][None], k=k))
        elif gains.any():
            found.append(1.0)
    return np.mean(found)


@pytest.mark.parametrize("k", [1, 3, 10, None])
@pytest.mark.parametrize("grades", [2, 5])
def test_ndcg_equals_scikit_learns_mean_over_groups_with_ties_and_split_groups(k, grades):
    rows = grouped_rows(grades=grades)
    assert value(m.Ndcg(k), *batches_of(rows, 13, 100, 399)) == pytest.approx(mean_ndcg(rows, k), rel=1e-9)


def test_ndcg_of_hand_worked_rows():
    # The click lies second: 1 / log2(3). The other group has no click and is left out.
    rows = {"probabilities": [0.9, 0.4, 0.7], "labels": [0, 1, 0], "groups": [4, 4, 9]}
    assert value(m.Ndcg(), **rows) == pytest.approx(1 / math.log2(3), rel=1e-9)
    assert value(m.Ndcg(1), **rows) == 0.0


def test_ndcg_keeps_group_ids_apart_that_floats_would_merge():
    rows = {"probabilities": [0.2, 0.9], "labels": [1, 0], "groups": np.array([2**62, 2**62 + 1])}
    assert value(m.Ndcg(), **rows) == 1.0
    with pytest.raises(DataError, match="groups are not integers"):
        value(m.Ndcg(), **{**rows, "groups": rows["groups"].astype(np.float64)})


def test_ndcg_leaves_out_rows_without_weight():
    rows = {"probabilities": [0.9, 0.4], "labels": [0, 1], "groups": [1, 1], "weights": [0.0, 5.0]}
    assert value(m.Ndcg(), **rows) == 1.0
    assert value(m.Ndcg(weighted=False), **rows) == pytest.approx(1 / math.log2(3), rel=1e-9)


@pytest.mark.parametrize("label", [-1.0, 31.0])
def test_ndcg_refuses_labels_that_are_no_grades(label):
    with pytest.raises(DataError, match=r"no grade of relevance(.|\n)*Ndcg"):
        value(m.Ndcg(), probabilities=[0.1, 0.2], labels=[1.0, label], groups=[1, 1])


def test_ndcg_of_k_below_one_is_refused():
    with pytest.raises(ConfigError, match="k is too small"):
        m.Ndcg(0)
