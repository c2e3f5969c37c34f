import numpy as np
import onnxruntime
import pytest
import torch

from tests.projects.light_ranker.export.tiny_ranker import ISOTONIC, build, write_features
from tml.common.errors import ConfigError
from tml.projects.light_ranker.export.byte_layers import ByteLinear, FromBytes, to_bytes
from tml.projects.light_ranker.export.check import trainer_scores
from tml.projects.light_ranker.export.graph import MlpGraph, isotonic_of
from tml.projects.light_ranker.export.numbers import Scaled
from tml.projects.light_ranker.export.onnx_file import record_graph
from tml.projects.light_ranker.export.quantize import ByteSide, byte_graph, largest_values
from tml.projects.light_ranker.export.ranker import _made_up
from tml.projects.light_ranker.export.tables import RowSteps, write_byte_tables

FLAT = """
features:
  - {name: user_id, kind: categorical, side: user, hashed: {num_buckets: 50}, type: int}
  - {name: author, kind: categorical, side: candidate, hashed: {num_buckets: 30}, type: string}
  - {name: tweet, kind: categorical, side: candidate, hashed: {num_buckets: 40}, type: int}
  - {name: age, kind: continuous, side: user}
  - {name: likes, kind: continuous, side: candidate, discretizer: {kind: hashing, num_bins: 4, output_bits: 6}}
  - {name: hour, kind: continuous, side: candidate, transform: z_score}
  - {name: image, kind: vector, side: candidate, dim: 3}
labels:
  - {name: click, kind: binary}
  - {name: watch_time, kind: nonnegative}
"""
MODELS = {
    "mlp": {},
    "deep": {"hidden_sizes": [32, 16, 8], "dropout": 0.1},
    "one_layer": {"hidden_sizes": [16]},
    "wide": {"wide": True},
    "dot": {"interaction": {"kind": "dot"}},
    "fwfm": {"wide": True, "interaction": {"kind": "fwfm"}},
    "cross": {"interaction": {"kind": "cross"}},
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("features")
    return {"flat": write_features(root / "flat", FLAT), "lists": write_features(root / "lists")}


def inputs_of(graph, rows):
    given = rows.inputs("user") | rows.inputs("candidate")
    return {name: torch.from_numpy(given[name]) for name in graph.inputs}


@pytest.mark.parametrize("features", ["flat", "lists"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_in_bytes_are_near_the_models(encoders, features, name):
    model = build(encoders[features], {"mlp": MODELS[name]}, watch_time_label="watch_time").eval()
    rows, isotonic = _made_up(model), isotonic_of(ISOTONIC)
    graph = byte_graph(model, isotonic, [rows])
    assert isinstance(graph.candidate, ByteSide) == (features == "flat" and "interaction" not in MODELS[name])
    expected = trainer_scores(model, isotonic, rows)
    with torch.no_grad():
        logits = graph.with_tables().eval()(**inputs_of(graph, rows))[1].numpy()
    difference = np.abs(logits - expected["logit"]) / expected["logit"].std()
    assert difference.mean() < 0.05
    assert difference.max() < 0.25
    assert not np.array_equal(logits, expected["logit"])


@pytest.mark.parametrize("features", ["flat", "lists"])
def test_onnx_runtime_computes_the_bytes_that_torch_does(encoders, features):
    model = build(encoders[features], {"mlp": {"wide": True}}, watch_time_label="watch_time").eval()
    rows = _made_up(model)
    graph = byte_graph(model, None, [rows]).with_tables().eval()
    recorded = record_graph(graph, graph.inputs, graph.outputs)
    kinds = [node.op_type for node in recorded.graph.node]
    assert kinds.count("QGemm") == 3, "two hidden layers and the wide part"
    session = onnxruntime.InferenceSession(recorded.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: values.numpy() for name, values in inputs_of(graph, rows).items()})
    with torch.no_grad():
        expected = graph(**inputs_of(graph, rows))
    spread = float(expected[1].std())
    # A sum on the border of two bytes may fall to either side.
    assert np.abs(found[1] - expected[1].numpy()).max() < 0.02 * spread
    assert np.median(np.abs(found[1] - expected[1].numpy())) < 1e-5 * spread


def test_a_layer_in_bytes_by_hand():
    weight = torch.tensor([[1.27, 0.0], [-0.5, 0.25]])
    steps = torch.tensor([0.1, 2.0])
    # Inputs 0.3 and -4: bytes 131 and 126. Steps of the units: 0.127 / 127 and 0.5 / 127.
    x = to_bytes(torch.tensor([[0.3, -4.0]]) / steps)
    assert x.tolist() == [[131, 126]]
    floats = ByteLinear(weight, steps, 128, None)
    assert floats.matrix.T.tolist() == [[127, 0], [-13, 127]]
    bias = torch.tensor([[0.1, 3.0]])
    exact = [127 * 3 * 0.001 + 0.1, (-13 * 3 + 127 * -2 + 762) * 0.5 / 127]
    np.testing.assert_allclose(floats(x, bias), [exact], rtol=1e-6)
    in_bytes = ByteLinear(weight, steps, 128, torch.tensor([0.01, 0.01]))
    assert in_bytes(x, bias).tolist() == [[48, 185]]
    assert in_bytes(x, -bias * 100).tolist() == [[0, 0]], "the ReLU"
    assert in_bytes(x, bias * 100).tolist() == [[255, 255]], "what is beyond the largest value is cut off"


def test_a_unit_without_weights_keeps_its_bias():
    layer = ByteLinear(torch.tensor([[1.0], [0.0]]), torch.tensor([0.1]), 128, None)
    found = layer(torch.tensor([[128]], dtype=torch.uint8), torch.tensor([[0.0, 0.75]]))
    np.testing.assert_allclose(found, [[0.0, 0.75]], atol=1e-5)


def test_bytes_are_cut_off_where_they_end():
    assert to_bytes(torch.tensor([-500.0, -128.0, -0.4, 0.6, 127.0, 300.0])).tolist() == [0, 0, 128, 129, 255, 255]
    assert FromBytes(torch.tensor(0.5))(torch.tensor([0, 128, 255], dtype=torch.uint8)).tolist() == [-64.0, 0.0, 63.5]


def test_rows_are_within_half_a_step_of_their_stretch_and_column(tmp_path):
    rows = torch.randn(50, 8) * torch.logspace(-3, 3, 50)[:, None]
    rows[:20, 3] = 0.0
    steps = RowSteps.of("t", rows, [0, 20])
    (section,) = write_byte_tables(tmp_path / "t", {"t": rows}, {"t": steps})
    stored = np.frombuffer((tmp_path / "t").read_bytes(), np.uint8, section.length, section.offset).reshape(50, 8)
    step = steps.of_rows(torch.arange(50))
    np.testing.assert_allclose(step[20:], (rows[20:].abs().amax(0) / 127).expand(30, 8))
    found = FromBytes(step)(torch.from_numpy(stored.copy()))
    assert ((found - rows).abs() <= step * 0.5001).all()
    assert not found[:20, 3].any()


@pytest.mark.parametrize("num_columns", [3, 40])
def test_scaling_is_the_same_by_product_and_by_column(num_columns):
    x, shift = torch.randn(5, num_columns), torch.randn(num_columns)
    scale = torch.rand(num_columns) + 0.5
    scaled = Scaled(shift, scale)
    assert scaled.is_product == (num_columns == 3)
    np.testing.assert_allclose(scaled(x), (x - shift) * scale, atol=1e-6)


def test_largest_values_are_those_of_all_samples(encoders):
    model = build(encoders["flat"], {"mlp": {}}).eval()
    rows = _made_up(model)
    one = largest_values(MlpGraph(model, None), [rows])
    twice = largest_values(MlpGraph(model, None), [rows, rows])
    assert [len(values) for values in one] == [model.hidden[0].in_features - 1 * 16 - 2, 256]
    for first, second in zip(one, twice, strict=True):
        np.testing.assert_array_equal(first, second)
        assert (first > 0).all()
    with pytest.raises(ConfigError, match="no rows"):
        byte_graph(model, None, [])
