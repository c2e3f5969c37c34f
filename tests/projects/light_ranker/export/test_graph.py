import numpy as np
import pytest
import torch

from tests.projects.light_ranker.export.tiny_ranker import FEATURES, ISOTONIC, build, write_features
from tml.common.errors import DataError
from tml.common.modules.calibrators import Isotonic
from tml.projects.light_ranker.export.check import trainer_scores
from tml.projects.light_ranker.export.graph import MlpGraph, isotonic_of
from tml.projects.light_ranker.export.lolly_graph import LollyGraph
from tml.projects.light_ranker.export.outputs import GraphIsotonic
from tml.projects.light_ranker.export.ranker import _made_up
from tml.projects.light_ranker.export.sides import GraphBins
from tml.projects.light_ranker.models.bins import Bins

MODELS = {
    "mlp": {"mlp": {}},
    "dot": {"mlp": {"interaction": {"kind": "dot"}, "hidden_sizes": [16]}},
    "fwfm": {"mlp": {"interaction": {"kind": "fwfm"}, "hidden_sizes": [16]}},
    "cross": {"mlp": {"interaction": {"kind": "cross"}, "hidden_sizes": [16, 8]}},
    "wide": {"mlp": {"wide": True, "dropout": 0.5, "hidden_sizes": [16, 8]}},
    "wide_fwfm": {"mlp": {"wide": True, "interaction": {"kind": "fwfm"}, "hidden_sizes": [16]}},
    "wide_single_output": {"mlp": {"wide": True, "heads": "single_output", "hidden_sizes": [8]}},
    "single_output": {"mlp": {"heads": "single_output", "hidden_sizes": [8]}},
    "lolly_lr": {"lolly_lr": {"input_size_bits": 10}},
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features") / "f")


def graph_of(model, isotonic):
    kind = LollyGraph if "Lolly" in type(model).__name__ else MlpGraph
    return kind(model, isotonic).with_tables().eval()


@pytest.mark.parametrize("name", MODELS)
def test_the_split_graph_scores_like_the_model(encoder, name):
    loss = {} if name == "lolly_lr" else {"watch_time_label": "watch_time"}
    model = build(encoder, MODELS[name], **loss).eval()
    isotonic = isotonic_of(ISOTONIC)
    rows = _made_up(model)
    inputs = rows.inputs("user") | rows.inputs("candidate")
    graph = graph_of(model, isotonic)
    with torch.no_grad():
        scores = graph(**{key: torch.from_numpy(inputs[key]) for key in graph.inputs})
    expected = trainer_scores(model, isotonic, rows)
    assert graph.outputs == ["probability", "logit", "watch_time"][: len(scores)]
    assert expected["raw"].std() > 0.01
    np.testing.assert_allclose(scores[0], expected["probability"], atol=2e-6)
    np.testing.assert_allclose(scores[1], expected["logit"], atol=2e-5)
    if name != "lolly_lr":
        np.testing.assert_allclose(np.log1p(scores[2].numpy()), expected["watch_time"], atol=2e-5)


@pytest.mark.parametrize("name", ["mlp", "dot", "cross"])
def test_piecewise_linear_numbers_of_both_sides_are_served_as_the_model_takes_them(tmp_path, name):
    pieces = ", encoding: piecewise_linear}"
    text = FEATURES.replace("default: 12.0}", "discretizer: {kind: percentile, num_bins: 3" + pieces + "}")
    text = text.replace("side: user, discretizer: {kind: percentile, num_bins: 4}", "side: user, keep_value: false, "
                        "discretizer: {kind: percentile, num_bins: 4" + pieces)  # fmt: skip
    model = build(write_features(tmp_path / "f", text), MODELS[name], watch_time_label="watch_time").eval()
    assert model.inputs.names.count("hour") == 2 + 3
    assert model.inputs.names.count("age") == 4
    rows, graph = _made_up(model), graph_of(model, None)
    inputs = rows.inputs("user") | rows.inputs("candidate")
    with torch.no_grad():
        found = graph(**{key: torch.from_numpy(inputs[key]) for key in graph.inputs})[1]
    np.testing.assert_allclose(found, trainer_scores(model, None, rows)["logit"], atol=2e-5)
    model.inputs.pieces.scale.zero_()
    assert np.abs(trainer_scores(model, None, rows)["logit"] - found.numpy()).max() > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_one_user_for_all_candidates_is_the_same_as_one_each(encoder, name):
    model = build(encoder, MODELS[name]).eval()
    rows = _made_up(model)
    graph = graph_of(model, None)
    candidate = {key: torch.from_numpy(v) for key, v in rows.inputs("candidate").items() if key in graph.inputs}
    user = {key: torch.from_numpy(v[5:6]) for key, v in rows.inputs("user").items() if key in graph.inputs}
    with torch.no_grad():
        once = graph(**user, **candidate)
        each = graph(**{key: values.expand(len(rows), -1) for key, values in user.items()}, **candidate)
    np.testing.assert_allclose(once[0], each[0], atol=1e-6)


def test_a_text_models_bins_and_presences_are_served_as_the_text_scores_them(encoder, tmp_path):
    buckets = {"age": [("-inf", "20", 0.5), ("20", "40", -1.0), ("40", "inf", 2.0)], "rate": [("0", "0.5", 0.25)]}
    lines = ["m\tbias\t-0.5", "m\tcountry\t0.75", "m\thour\t-0.125"]
    for name, ranges in buckets.items():
        lines += [f"m\t{name}.dz/dz_model=mdl/dz_range={low}_{high}\t{weight}" for low, high, weight in ranges]
    (tmp_path / "lolly.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = build(
        encoder, {"lolly_lr": {"input_size_bits": 16, "initial_model": str(tmp_path / "lolly.tsv")}}, trained=False
    )
    rows, graph = _made_up(model.eval()), graph_of(model, None)
    inputs = rows.inputs("user") | rows.inputs("candidate")
    with torch.no_grad():
        logits = graph(**{key: torch.from_numpy(inputs[key]) for key in graph.inputs})[1]
    np.testing.assert_allclose(logits, trainer_scores(model, None, rows)["logit"], atol=1e-5)
    age, hour, rate = (
        rows.continuous[:, [f.name for f in encoder.spec.continuous].index(n)] for n in ("age", "hour", "rate")
    )
    scored = np.nan_to_num(rate, nan=-1) >= 0
    scored &= np.nan_to_num(rate, nan=1) < 0.5
    by_age = np.select([np.isnan(age), age < 20, age < 40], [0, 0.5, -1.0], 2.0)
    by_hand = -0.5 + 0.75 * (rows.ids[:, 0] > 0) - 0.125 * ~np.isnan(hour) + by_age + 0.25 * scored
    np.testing.assert_allclose(logits[scored], by_hand[scored], atol=1e-5)


def test_a_mean_squared_error_of_seconds_is_served_in_seconds(encoder):
    model = build(encoder, MODELS["mlp"], watch_time_label="watch_time", watch_time_loss="mse").eval()
    rows, graph = _made_up(model), graph_of(model, None)
    inputs = rows.inputs("user") | rows.inputs("candidate")
    with torch.no_grad():
        seconds = graph(**{key: torch.from_numpy(inputs[key]) for key in graph.inputs})[2]
    assert seconds.min() == 0
    np.testing.assert_allclose(np.log1p(seconds.numpy()), trainer_scores(model, None, rows)["watch_time"], atol=2e-5)


@pytest.mark.parametrize("left_closed", [False, True])
@pytest.mark.parametrize("num_boundaries", [3, 700])
def test_bins_in_the_graph_agree_with_numpy_on_and_between_boundaries(left_closed, num_boundaries):
    edges = np.sort(np.random.default_rng(0).normal(size=num_boundaries)).astype(np.float32)
    rows = list(range(100, 100 + num_boundaries + 2))
    bins = GraphBins(Bins([1], [edges.tolist()], [rows], left_closed), [0], [0])
    values = np.concatenate([edges, edges + 1e-4, [-1e9, 1e9, np.nan]]).astype(np.float32)
    expected = 101 + np.searchsorted(edges, values, side="right" if left_closed else "left")
    expected[np.isnan(values)] = 100
    np.testing.assert_array_equal(bins(torch.from_numpy(values)[:, None])[:, 0], expected)


@pytest.mark.parametrize("num_points", [1, 2, 5, 1000])
def test_the_graphs_calibration_is_numpys_interpolation(num_points):
    rng = np.random.default_rng(num_points)
    xs, ys = np.sort(rng.random(num_points)), np.sort(rng.random(num_points))
    values = np.concatenate([rng.random(200), xs, [0.0, 1.0]]).astype(np.float32)
    found = GraphIsotonic(Isotonic(xs, ys))(torch.from_numpy(values))
    np.testing.assert_allclose(found, np.interp(values, xs.astype(np.float32), ys), atol=1e-4)


def test_where_calibration_points_share_an_x_the_first_ones_y_is_taken():
    isotonic = GraphIsotonic(Isotonic([0.2, 0.4, 0.4, 0.8], [0.1, 0.2, 0.6, 0.7]))
    found = isotonic(torch.tensor([0.0, 0.3, 0.4, 0.6, 0.9]))
    np.testing.assert_allclose(found, [0.1, 0.15, 0.2, 0.65, 0.7], atol=1e-6)


def test_a_model_without_candidate_features_is_refused(tmp_path):
    text = "features:\n  - {name: age, kind: continuous, side: user}\nlabels:\n  - {name: click, kind: binary}\n"
    model = build(write_features(tmp_path / "f", text), {"mlp": {}})
    with pytest.raises(DataError, match="knows nothing of candidates"):
        MlpGraph(model, None)
