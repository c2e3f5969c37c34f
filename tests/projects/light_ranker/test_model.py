"""The network: predictions against numpy, gradients against finite differences, and what padding must not do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.projects.light_ranker.tiny_run import LOLLY, TinyData, config_of, tiny_settings, write_data
from tests.runs import merged
from tml.common.errors import DataError
from tml.common.modules import dense_kernel
from tml.common.modules.normalizers import Normalizer
from tml.projects.light_ranker.calibration import Calibration
from tml.projects.light_ranker.config import DataConfig, InteractionConfig
from tml.projects.light_ranker.data.dataset import RankerDataset, Share
from tml.projects.light_ranker.features.spec import IdFeature
from tml.projects.light_ranker.lolly.hashed import bin_rows, feature_row
from tml.projects.light_ranker.models.build import build_model, build_slots
from tml.projects.light_ranker.models.interactions import FieldWeightedProducts, build_interaction
from tml.projects.light_ranker.models.lolly_slots import LollySlots
from tml.projects.light_ranker.models.pretrained import read_pretrained
from tml.projects.light_ranker.optimizer import build_optimizers
from tml.projects.light_ranker.records.feature_ids import feature_id, mix_discrete

BOUNDARIES = {"age": [1.0, 2.0, 4.0], "likes": [0.5, 3.0], "rate": [2.0, 3.0], "hour": [1.0]}
INTERACTIONS = [None, {"kind": "dot"}, {"kind": "cross", "rank": 3}, {"kind": "fwfm"}]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return write_data(tmp_path_factory.mktemp("data"))


def _build(data: TinyData, **sections):
    config = config_of(tiny_settings(data, "unused", **sections))
    names = [feature.name for feature in data.spec.continuous]
    transforms = [feature.transform for feature in data.spec.continuous]
    numbers = torch.arange(1, len(names) + 1, dtype=torch.float64)
    calibration = Calibration(Normalizer(names, transforms, numbers / 3, numbers, numbers), BOUNDARIES, "test")
    slots = build_slots(config, data.spec, calibration, "cpu")
    model = build_model(config, slots, calibration, torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        if config.model.mlp is not None:
            for table in model.tables.weights():
                table.copy_(torch.randn(table.shape, generator=generator) * 0.5)
    return config, slots, model


def _batch(data: TinyData, slots, size: int = 40):
    dataset = RankerDataset(DataConfig(data_root=data.split("valid")), data.spec, slots, Share(size))
    return next(iter(dataset))


def _columns_by_hand(data: TinyData, slots, model, batch) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings `[B, F, D]` and numbers as plain loops make them."""
    table = model.tables.weights()[0].numpy()
    rows = table[batch.nodes.values().view(len(batch.weight), -1).numpy()]
    mask, parts, start = batch.slot_mask.numpy(), [], 0
    for feature in data.spec.ids:
        part = slice(start, start + feature.num_slots)
        total = (rows[:, part] * mask[:, part, None]).sum(1)
        parts.append(total / mask[:, part].sum(1, keepdims=True) if feature.pooling == "mean" else total)
        start += feature.num_slots
    parts += [rows[:, place] for place in range(start, rows.shape[1])]
    values, missing = [], []
    for place, feature in enumerate(data.spec.continuous):
        if feature.keep_value:
            x = batch.continuous[:, place].numpy().astype(np.float64)
            missing.append(np.isnan(x))
            x = np.sign(x) * np.log1p(np.abs(x)) if feature.transform == "log_z_score" else x
            values.append(np.where(np.isnan(x), 0.0, (x - (place + 1) / 3) / (place + 1)))
    return np.stack(parts, 1), np.stack([*values, *missing, *batch.vectors.numpy().T], 1).astype(np.float32)


def _linear(layer, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + (0 if layer.bias is None else layer.bias.detach().numpy())


@pytest.mark.parametrize("interaction", INTERACTIONS, ids=str)
def test_predictions_are_those_of_plain_numpy(data, interaction):
    _, slots, model = _build(data, model={"mlp": {"interaction": interaction}})
    model.eval()
    batch = _batch(data, slots)
    embeddings, numbers = _columns_by_hand(data, slots, model, batch)
    x, products = np.concatenate([embeddings.reshape(len(embeddings), -1), numbers], 1), {}
    if interaction == {"kind": "dot"}:
        vectors = np.concatenate([embeddings, _linear(model.interaction.project, numbers)[:, None]], 1)
        pairs = [(i, j) for i in range(vectors.shape[1]) for j in range(i + 1, vectors.shape[1])]
        x = np.concatenate([x, *[(vectors[:, i] * vectors[:, j]).sum(1)[:, None] for i, j in pairs]], 1)
    elif interaction == {"kind": "fwfm"}:
        count = embeddings.shape[1]
        pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
        weights = model.interaction.weight.detach().numpy()
        total = sum(w * (embeddings[:, i] * embeddings[:, j]).sum(1) for w, (i, j) in zip(weights, pairs, strict=True))
        products = {name: float(factor.detach()) * total for name, factor in model.interaction.factors.items()}
    elif interaction is not None:
        crossed = x
        for down, up in model.interaction.layers:
            crossed = x * _linear(up, _linear(down, crossed)) + crossed
        x = crossed
    hidden = x
    for layer in (model.hidden[0], model.hidden[2]):
        hidden = np.maximum(_linear(layer, hidden), 0)
    _, outputs = model(batch)
    expected = {name: _linear(head, hidden)[:, 0] + products.get(name, 0) for name, head in model.heads.items()}
    np.testing.assert_allclose(outputs["logits"].numpy(), expected["click"], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(outputs["watch_time_prediction"].numpy(), expected["watch_time"], rtol=2e-4, atol=2e-4)


def test_the_linear_part_passes_the_hidden_layers_by_and_evaluation_drops_nothing(data):
    _, slots, model = _build(data, model={"mlp": {"wide": True, "dropout": 0.4}})
    batch = _batch(data, slots)
    embeddings, numbers = _columns_by_hand(data, slots, model, batch)
    first, *others = [layer for layer in model.hidden if isinstance(layer, torch.nn.Linear)]
    sums = _linear(first, np.concatenate([embeddings.reshape(len(embeddings), -1), numbers], 1))
    hidden, wide = np.maximum(sums[:, :-2], 0), sums[:, -2:]
    for layer in others:
        hidden = np.maximum(_linear(layer, hidden), 0)
    _, outputs = model.eval()(batch)
    expected = [_linear(head, hidden)[:, 0] + wide[:, place] for place, head in enumerate(model.heads.values())]
    np.testing.assert_allclose(outputs["logits"].numpy(), expected[0], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(outputs["watch_time_prediction"].numpy(), expected[1], rtol=2e-4, atol=2e-4)
    losses = {float(model.train()(batch)[0].detach()) for _ in range(3)}
    assert len(losses) == 3


def test_embeddings_are_dropped_as_a_whole_in_training_and_kept_in_evaluation(data, monkeypatch):
    monkeypatch.setattr(dense_kernel, "can_run", lambda parts, layers: False)  # so that layers are called one by one
    _, slots, model = _build(data, model={"mlp": {"embedding_dropout": 0.25}})
    batch, taken = _batch(data, slots), []
    model.hidden[0].register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].detach()))
    model.eval()(batch)
    model.train()(batch)
    count, dim = len(slots.own) + len(slots.binned), model.head.embedding_dim
    kept, dropped = (x[:, : count * dim].unflatten(1, (count, dim)) for x in taken)
    gone = (dropped == 0).all(2) & (kept != 0).any(2)
    assert 0.1 < gone.float().mean() < 0.4
    torch.testing.assert_close(dropped, torch.where(gone.unsqueeze(2), 0.0, kept / 0.75))
    torch.testing.assert_close(taken[0][:, count * dim :], taken[1][:, count * dim :])


def test_the_linear_part_begins_as_a_sum_over_embeddings(data):
    config = config_of(tiny_settings(data, "unused", model={"mlp": {"wide": True}}))
    ones = torch.ones(len(data.spec.continuous), dtype=torch.float64)
    names, transforms = zip(*((f.name, f.transform) for f in data.spec.continuous), strict=True)
    calibration = Calibration(Normalizer(names, transforms, ones, ones, ones), BOUNDARIES, "test")
    model = build_model(config, build_slots(config, data.spec, calibration, "cpu"), calibration, torch.device("cpu"))
    first, dim = model.hidden[0], model.head.embedding_dim
    count = len(model.slots.own) + len(model.slots.binned)
    for output in range(2):
        row = first.weight[first.out_features - 2 + output]
        found = row[: count * dim].view(count, dim)
        assert found[:, output].eq(1).all()
        assert row.abs().sum() == count
    assert first.bias[-2:].eq(0).all()


@pytest.mark.parametrize("interaction", INTERACTIONS, ids=str)
def test_gradients_of_layers_are_those_of_finite_differences(data, interaction):
    _, slots, model = _build(data, model={"mlp": {"interaction": interaction}})
    batch = _batch(data, slots, 30)
    head = model.head.double()
    rows = model.tables(batch.nodes).detach().double().requires_grad_()
    wide = replace(
        batch,
        continuous=batch.continuous.double(), vectors=batch.vectors.double(), slot_mask=batch.slot_mask.double(),
        labels=batch.labels.double(), weight=batch.weight.double(),
    )  # fmt: skip
    names = [name for name, _ in head.named_parameters()]
    picked = dict(zip(names, head.parameters(), strict=True)) | {"rows": rows}
    loss, _ = head(rows, wide)
    gradients = dict(zip(picked, torch.autograd.grad(loss, list(picked.values())), strict=True))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in picked.items():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        step = 1e-6
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter.add_(sign * step * direction)
                values.append(float(head(rows, wide)[0]))
                parameter.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float((gradients[name] * direction).sum()), rel=1e-5, abs=1e-8), name


def test_one_output_is_both_predictions_when_the_config_says_so(data):
    _, slots, model = _build(data, model={"mlp": {"heads": "single_output"}})
    _, outputs = model.eval()(_batch(data, slots))
    assert list(model.heads) == ["click"]
    assert torch.equal(outputs["logits"], outputs["watch_time_prediction"])


def test_every_column_of_the_first_layer_has_an_owner(data):
    for interaction in INTERACTIONS:
        _, _, model = _build(data, model={"mlp": {"interaction": interaction}})
        layout = model.input_layout()
        assert [part.columns.start for part in layout[1:]] == [part.columns.stop for part in layout[:-1]]
        assert layout[-1].columns.stop == model.hidden[0].in_features
        sides = {feature.name: feature.side for feature in data.spec.features}
        assert all(sides.get(part.name, "both") == part.side for part in layout)


def test_padding_rows_change_neither_loss_nor_gradients_nor_tables(data):
    config, slots, model = _build(data)
    section = DataConfig(data_root=data.split("valid"), limit=20)
    plain = next(iter(RankerDataset(section, data.spec, slots, Share(20))))
    # The second of two ranks holds the last 8 of these rows and 6 rows that pad.
    padded = next(iter(RankerDataset(section, data.spec, slots, Share(24, 0, 1, 2))))
    assert int((~padded.is_real).sum()) == 4
    start = model.tables.weights()[0].clone()
    optimizers = build_optimizers(config.model, model)
    loss, _ = model(padded)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    changed = (model.tables.weights()[0] != start).any(1)
    optimizers.zero_grad()
    model.tables.weights()[0].copy_(start)
    real = next(
        iter(RankerDataset(DataConfig(data_root=data.split("valid"), offset=12, limit=8), data.spec, slots, Share(8)))
    )
    expected, _ = model(real)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for found, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(changed, (model.tables.weights()[0] != start).any(1))
    assert len(plain.weight) == 20


def test_bfloat16_layers_leave_logits_and_loss_in_float32(data):
    _, slots, model = _build(data, model={"mlp": {"interaction": {"kind": "fwfm"}}})
    batch = _batch(data, slots)
    exact, _ = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model(batch)
        _, outputs = model.eval()(batch)
    assert loss.dtype == outputs["logits"].dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.02)


def test_a_field_weighted_product_has_its_parameters_and_the_numbers_stay_out():
    built = build_interaction(InteractionConfig(kind="fwfm"), 5, 4, 7, 27, ["click"])
    assert isinstance(built, FieldWeightedProducts)
    assert built.weight.shape == (10,)
    weights = built.pair_weights()
    assert torch.equal(weights, weights.T)
    assert not weights.diagonal().any()


@pytest.fixture
def export_of_three(tmp_path) -> str:
    """A folder as `tml twhin export` writes it, with three embeddings of dim 2."""
    (tmp_path / "embeddings").mkdir()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6, dtype=np.float32)), 2)
    pq.write_table(pa.table({"id": ["a", "b", "c"], "embedding": vectors}), tmp_path / "embeddings" / "tweet.parquet")
    return str(tmp_path)


def _pretrained(folder: str, **options) -> IdFeature:
    options = {"num_rows": 5, "trainable": False, **options}
    return IdFeature("tweet", "candidate", embedding=f"{folder}#tweet", **options)


def test_a_pretrained_table_has_zeros_for_missing_and_the_mean_for_unknown_ids(export_of_three):
    rows = read_pretrained(_pretrained(export_of_three))
    assert rows.tolist() == [[0, 0], [2, 3], [0, 1], [2, 3], [4, 5]]


def test_fault_a_pretrained_table_of_another_length_or_without_a_file_is_refused(export_of_three, tmp_path):
    with pytest.raises(DataError, match="3 embeddings, 5 ids"):
        read_pretrained(_pretrained(export_of_three, num_rows=7))
    with pytest.raises(DataError, match="twhin export"):
        read_pretrained(_pretrained(str(tmp_path / "nowhere")))


@pytest.mark.parametrize("trainable", [False, True])
def test_pretrained_rows_move_only_when_they_are_fine_tuned(data, export_of_three, trainable):
    ids = tuple(
        _pretrained(export_of_three, num_rows=5, trainable=trainable) if feature.name == "tweet" else feature
        for feature in data.spec.ids
    )
    # Rows of the sixth id of this feature would be out of range of the pretrained table.
    changed = TinyData(data.root, replace(data.spec, ids=ids))
    config, slots, model = _build(changed, model={"mlp": {"pretrained_optimizer": {"sgd": {"learning_rate": 0.5}}}})
    batch = _batch(data, slots)
    batch = replace(batch, ids=batch.ids.clamp_max(4))
    start = {name: values.clone() for name, values in model.pretrained.named_parameters()}
    optimizers = build_optimizers(config.model, model)
    optimizers.set_learning_rates(0)
    loss, _ = model(batch)
    loss.backward()
    optimizers.step()
    used = set(batch.ids.unique().tolist())
    moved = {
        row for row in range(5) if not torch.equal(model.pretrained["tweet"].weight[row], start["tweet.weight"][row])
    }
    assert moved == (used if trainable else set())
    assert ("pretrained.tweet.weight" in model.checkpoint_tensors()) == trainable
    assert "tweet" not in slots.layout.tables


def test_lolly_ids_are_hashes_of_feature_and_value_as_the_original_makes_them(data):
    config = config_of(merged(tiny_settings(data, "unused"), LOLLY))
    slots = LollySlots(data.spec, config.model.lolly_lr)
    slots.set_boundaries(BOUNDARIES)
    country = np.array([[0, 1, 3]])  # missing, unknown, known
    spread = np.zeros((3, data.spec.num_slots), np.int64)
    spread[:, 0] = country[0]
    hashed = slots.hash_ids(spread)[:, 0]
    key = np.array([feature_id("country")] * 3)
    assert hashed[0] == -1
    assert np.array_equal(hashed[1:], (mix_discrete(key, country[0]) & 0xFFF)[1:])
    numbers = torch.tensor([[np.nan, 0.4, 1.0, 9.0], [1.0, 0.5, 1.5, 2.5]])
    found = slots.arrange(np.zeros((2, data.spec.num_slots), np.int64), numbers).ids[:, -4:]
    by_bin = {name: bin_rows(name, len(edges), 12, left_closed=False) for name, edges in BOUNDARIES.items()}
    assert found[0].tolist() == [-1, by_bin["likes"][0], by_bin["hour"][0], by_bin["rate"][2]]
    assert found[1].tolist() == [by_bin["age"][0], by_bin["likes"][0], by_bin["hour"][1], by_bin["rate"][1]]


def test_a_number_without_boundaries_counts_by_its_presence_in_lolly_lr(data):
    config = config_of(merged(tiny_settings(data, "unused"), LOLLY))
    slots = LollySlots(data.spec, config.model.lolly_lr)
    slots.set_boundaries({})
    found = slots.arrange(np.zeros((1, data.spec.num_slots), np.int64), torch.tensor([[5.0, np.nan, 1.0, 1.0]])).ids
    assert found[0, -4:].tolist()[1] == -1
    assert found[0, -4].item() == bin_rows("age", 0, 12, left_closed=False)[0] != feature_row("age", 12)


def test_lolly_lr_is_the_bias_and_the_sum_of_weights_and_starts_at_one(data):
    config, slots, model = _build(data, **LOLLY)
    batch = _batch(data, slots)
    weight, bias = model.weight.detach()[:, 0], model.bias.detach()
    expected = [bias + weight[ids[ids >= 0]].sum() for ids in batch.ids]
    torch.testing.assert_close(model.logits(batch.ids).detach(), torch.cat(expected), rtol=1e-5, atol=1e-5)
    fresh = build_model(
        config, slots, Calibration(Normalizer([], [], *torch.zeros(3, 0)), BOUNDARIES, ""), torch.device("cpu")
    )
    assert fresh.bias.tolist() == [1.0]
    assert not fresh.weight.any()


def test_lolly_lr_says_which_features_it_leaves_out(data, caplog):
    with caplog.at_level("WARNING", "tml"):
        _build(data, **LOLLY)
    assert "left out: taste" in caplog.text
