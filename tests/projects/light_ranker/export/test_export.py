import json
import os
import signal

import numpy as np
import onnx
import pytest

from tests.projects.light_ranker.export.tiny_ranker import ISOTONIC, build, export, write_features, write_split
from tml.common.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from tml.common.filesystem.digest import file_info
from tml.projects.light_ranker.config import ExportConfig
from tml.projects.light_ranker.export import check
from tml.projects.light_ranker.export.folder import new_export
from tml.projects.light_ranker.export.graph import isotonic_of
from tml.projects.light_ranker.export.ranker import _made_up
from tml.projects.light_ranker.serving.signature import read_signature


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("features") / "f"


@pytest.fixture(scope="module")
def encoder(folder):
    return write_features(folder)


@pytest.fixture(scope="module")
def model(encoder):
    return build(encoder, {"mlp": {}}, watch_time_label="watch_time")


@pytest.fixture(scope="module")
def split(folder, model):
    path = folder.parent / "split.parquet"
    write_split(path, model)
    return str(path)


@pytest.fixture(scope="module")
def exported(folder, model, split):
    settings = ExportConfig(int8=True)
    facts = {"metrics": {"auc": 0.7}, "step": 12}
    return export(folder, folder.parent / "export", model, settings=settings, facts=facts, evaluation_files=[split])


def test_the_files_score_like_the_trainer_with_one_user_or_with_many(exported, model):
    rows, isotonic = _made_up(model), isotonic_of(ISOTONIC)
    graph = check.ExportedGraph(exported / "model.onnx")
    expected = check.trainer_scores(model, isotonic, rows)
    np.testing.assert_allclose(graph.of_rows(rows)["probability"], expected["probability"], atol=5e-6)
    np.testing.assert_allclose(np.log1p(graph.of_rows(rows)["watch_time"]), expected["watch_time"], atol=5e-5)
    assert graph.of_request(rows)["probability"].shape == (len(rows),)
    assert not np.allclose(graph.of_request(rows)["probability"], expected["probability"], atol=1e-2)


@pytest.mark.parametrize("config", [{"mlp": {"interaction": {"kind": "cross"}}}, {"lolly_lr": {"input_size_bits": 10}}])
def test_other_models_pass_their_own_check(folder, encoder, tmp_path, config):
    signature = read_signature(export(folder, tmp_path / "export", build(encoder, config)))
    assert signature.self_check["float32"]["probability"] < 1e-5
    assert signature.outputs == ["probability", "logit"]
    assert signature.model["kind"] == next(iter(config))


def test_all_tables_are_one_initializer_in_a_file_beside_the_graph(exported, model):
    graph = onnx.load(str(exported / "model.onnx"), load_external_data=False).graph
    outside = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert [tuple(tensor.dims) for tensor in outside] == [tuple(model.tables.weights()[0].shape)]
    assert (exported / "model.onnx").stat().st_size < 1_000_000
    stored = np.fromfile(exported / "table.bin", np.float32).reshape(outside[0].dims)
    np.testing.assert_array_equal(stored, model.tables.weights()[0])


def test_the_users_half_of_the_first_layer_has_one_row_per_user(exported):
    graph = onnx.load(str(exported / "model.onnx"), load_external_data=False).graph
    shapes = {value.name: value.type.tensor_type.shape.dim[0].dim_param for value in graph.input}
    assert {name: side for name, side in shapes.items() if name.startswith("user")} == dict.fromkeys(
        ("user_ids", "user_continuous", "user_vectors"), "users"
    )
    gemms = [node for node in graph.node if node.op_type == "Gemm"]
    (of_user,) = (node for node in gemms if "user_weight" in node.input)
    assert any(of_user.output[0] in node.input[2:] for node in gemms), "the candidate's product starts from the user's"


def test_the_signature_says_what_a_caller_needs(exported):
    signature = read_signature(exported)
    features = {feature.name: feature for feature in signature.features}
    assert features["tweet"].column == "tweet_id"
    assert (features["tweet"].side, features["tweet"].dtype) == ("candidate", "int64")
    assert features["interests"].dtype == "list<string>"
    assert features["interests"].size == 3
    assert features["hour"].default == 12.0
    assert features["country"].vocabulary in signature.files
    assert features["author"].vocabulary is None
    assert signature.calibration["isotonic_points"] == {"click": 6}
    assert signature.calibration["boundaries"] == {"age": 5, "likes": 5, "rate": 5}
    assert signature.facts["metrics"] == {"auc": 0.7}
    assert signature.self_check["float32"]["num_rows"] == 2 * (256 + 400)
    assert signature.made_with["versions"]["tml"]
    assert signature.files["table.bin"] == file_info(exported / "table.bin")


def test_the_cost_of_eight_bits_is_measured_and_printed(folder, model, split, tmp_path, capsys, exported):
    cost = read_signature(exported).self_check["int8"]
    assert 0.6 < cost["auc"] < 1
    assert cost["auc_cost"] == pytest.approx(cost["auc"] - cost["auc_int8"])
    assert abs(cost["auc_cost"]) < 0.02
    assert 0 < cost["mean_abs_difference"] < 0.02
    assert (exported / "table.int8.bin").stat().st_size == model.tables.weights()[0].numel()


def test_a_model_that_scores_otherwise_after_all_is_not_committed(folder, encoder, model, tmp_path, monkeypatch):
    before = export(folder, tmp_path / "export", build(encoder, {"lolly_lr": {"input_size_bits": 10}}))
    version = read_signature(before).version
    other = build(encoder, {"lolly_lr": {"input_size_bits": 9}})
    honest = check.trainer_scores

    def biased(*arguments):
        return {name: np.clip(values + 0.01, 0, 1) for name, values in honest(*arguments).items()}

    monkeypatch.setattr(check, "trainer_scores", biased)
    with pytest.raises(CheckpointError, match="does not score like the model"):
        export(folder, before, other, isotonic=None)
    assert read_signature(before).version == version
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_nan_from_the_graph_counts_as_a_difference(encoder):
    found = {"num_rows": 1.0, "probability": 0.0, "beyond_calibration": 0.0}
    nan = np.array([np.nan], np.float32)
    check._widen(found, {"raw": nan * 0 + 0.5, "probability": nan * 0 + 0.5}, {"probability": nan}, None)
    with pytest.raises(CheckpointError):
        check.refuse_difference(found, 1.0, "here")


def test_a_killed_export_leaves_the_old_one(folder, encoder, tmp_path):
    out = export(folder, tmp_path / "export", build(encoder, {"lolly_lr": {"input_size_bits": 10}}))
    version = read_signature(out).version
    child = os.fork()
    if child == 0:
        with new_export(out, overwrite=True) as half:
            (half / "model.onnx").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert read_signature(out).version == version
    assert len(list(tmp_path.iterdir())) == 2, "the killed one left its half"
    with pytest.raises(KeyError), new_export(out, overwrite=True):
        raise KeyError("any fault")
    assert list(tmp_path.iterdir()) == [out], "the next one clears it away"


def test_a_table_with_a_nan_is_refused_and_leaves_nothing(folder, encoder, tmp_path):
    model = build(encoder, {"mlp": {"hidden_sizes": [4]}})
    model.tables.weights()[0][17, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="table, row 17"):
        export(folder, tmp_path / "export", model)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken_is_left_alone(folder, model, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not an exported ranker"):
        export(folder, tmp_path, model)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_settings_that_cannot_be_met_are_refused(folder, encoder, model, tmp_path):
    with pytest.raises(ConfigError, match="what they cost"):
        export(folder, tmp_path / "e", model, settings=ExportConfig(int8=True))
    text = "features:\n  - {name: hour, kind: continuous, side: candidate}\nlabels:\n  - {name: click, kind: binary}\n"
    write_features(tmp_path / "other", text)
    with pytest.raises(ConfigError, match="not the one that the model was trained with"):
        export(tmp_path / "other", tmp_path / "e", model)


@pytest.mark.parametrize("harm", ["change", "cut", "remove", "add", "signature", "json"])
def test_a_tampered_or_partial_folder_is_refused(exported, tmp_path, harm):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in exported.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(exported)).parent.mkdir(exist_ok=True)
            (copy / path.relative_to(exported)).write_bytes(path.read_bytes())
    victim, sign = copy / "vocab" / "country.parquet", copy / "signature.json"
    data = bytearray(victim.read_bytes())
    if harm == "change":
        data[10] ^= 1
        victim.write_bytes(data)
    elif harm == "cut":
        os.truncate(victim, 10)
    elif harm == "remove":
        victim.unlink()
    elif harm == "add":
        (copy / "vocab" / "other.parquet").write_bytes(b"")
    elif harm == "signature":
        body = json.loads(sign.read_text()) | {"facts": {"metrics": {"auc": 0.99}}}
        sign.write_text(json.dumps(body))
    else:
        sign.write_text("{")
    with pytest.raises(DataError, match=r"changed|missing|does not know|damaged"):
        read_signature(copy)
