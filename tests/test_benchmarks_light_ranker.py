"""The light ranker's benchmarks: their data is what it says, and what they compare is equal; nothing here is timed."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import log_loss, roc_auc_score

from tml.benchmarks import bank_marketing, kuairand, kuairand_rows
from tml.benchmarks.click_data import ITEM, SPREADS, Truth, make_clicks
from tml.benchmarks.light_ranker_vs_keras.peer_rows import Clock, scale
from tml.benchmarks.light_ranker_vs_keras.run import CONTESTANTS, chosen
from tml.benchmarks.light_ranker_vs_keras.settings import (
    Settings,
    click_features,
    keras_extras,
    peer_job,
    ranker_config,
)
from tml.benchmarks.lightgbm_baseline.lightgbm_worker import codes
from tml.benchmarks.ranker_runs import Predicted, calibration_error, click_scores, rce, watch_scores
from tml.core.config import parse_config
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.spec import ContinuousFeature, FeatureSpec, IdFeature, LabelSpec


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clicks") / "made"
    return folder, make_clicks(20_000, folder, seed=3)


@pytest.fixture(scope="module")
def truth():
    return Truth(3)


def test_clicks_have_the_shape_that_is_promised(clicks):
    folder, meta = clicks
    tables = {split: pq.read_table(folder / f"{split}.parquet") for split in ("train", "valid", "test")}
    assert {split: table.num_rows for split, table in tables.items()} == meta["rows"]
    assert meta["rows"] == {"train": 16_000, "valid": 2_000, "test": 2_000}
    names = tables["train"].column_names
    assert names[:2] == ["click", "watch_time"]
    assert names[2:] == [f"I{n}" for n in range(1, 14)] + [f"C{n}" for n in range(1, 27)]
    for column, size in enumerate(meta["vocab"]):
        ids = tables["train"][f"C{column + 1}"].to_numpy()
        assert ids.min() >= 0
        assert ids.max() < size
        assert len(np.unique(ids)) == meta["ids_seen"][column]
    click, seconds = (tables["train"][name].to_numpy() for name in ("click", "watch_time"))
    assert click.mean() == pytest.approx(0.25, abs=0.02)
    assert not seconds[click == 0].any()
    assert (seconds[click == 1] > 0).all()
    missing = [np.isnan(tables["train"][f"I{n}"].to_numpy()).mean() for n in range(1, 14)]
    assert max(missing) > 0.1
    assert min(missing) == 0


def test_clicks_are_a_function_of_rows_and_seed(clicks, tmp_path):
    folder, meta = clicks
    assert make_clicks(20_000, tmp_path / "again", seed=3) == meta
    again = tmp_path / "again" / "test.parquet"
    assert again.read_bytes() == (folder / "test.parquet").read_bytes()
    assert make_clicks(20_000, tmp_path / "other", seed=4)["best_on_test"] != meta["best_on_test"]


def test_the_best_auc_is_that_of_the_true_probability(clicks):
    _, meta = clicks
    # 2,000 test rows: the AUC of the truth is near .80 whatever the seed, and what cannot be learnt is below it.
    assert 0.77 < meta["best_on_test"]["auc"] < 0.84
    assert 0.5 < meta["reachable_auc"] < meta["best_on_test"]["auc"]


def test_the_parts_of_the_logit_are_as_spread_as_is_promised(truth):
    rows = truth.draw(np.random.default_rng(0), 20_000)
    parts = truth._parts(rows, None)
    for name, spread in SPREADS.items():
        assert (truth.scales[name] * parts[name]).std() == pytest.approx(spread, rel=0.1)
    everything = [np.ones(size, bool) for size in truth.sizes]
    np.testing.assert_allclose(truth.logits(rows, everything), truth.logits(rows), rtol=1e-4, atol=1e-4)
    assert (truth.factors == ITEM).any()


def test_ids_follow_a_power_law(truth):
    rows = truth.draw(np.random.default_rng(1), 50_000)
    column = int(np.argmax(truth.sizes))
    counts = np.sort(np.bincount(rows.ids[:, column], minlength=truth.sizes[column]))[::-1]
    # Few ids have most of the rows, and most ids have none.
    assert counts[:1000].sum() > 0.3 * counts.sum()
    assert (counts == 0).mean() > 0.9


def test_too_few_rows_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="at least 10"):
        make_clicks(5, tmp_path / "few")


def _spec() -> FeatureSpec:
    return FeatureSpec(
        (IdFeature("C1", "user", 12), IdFeature("C2", "candidate", 30)),
        (ContinuousFeature("I1", "user"), ContinuousFeature("I2", "candidate")),
        (),
        (LabelSpec("click", "binary"), LabelSpec("watch_time", "nonnegative")),
    )


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("bf16", [True, False])
def test_all_systems_are_asked_for_the_same_work(tmp_path, beta, bf16):
    settings = Settings(dim=8, hidden_sizes=(32, 16), batch_size=100, beta=beta, workers=3, seed=5)
    _spec().save(tmp_path)
    ours = parse_config(LightRankerConfig, ranker_config(settings, tmp_path, bf16))
    theirs = peer_job(settings, tmp_path, tmp_path / "out", None) | keras_extras(settings, bf16)
    mlp = ours.model.mlp
    assert mlp.embedding_dim == theirs["dim"] == 8
    assert mlp.hidden_sizes == theirs["hidden_sizes"] == [32, 16]
    assert mlp.init_scale == theirs["init_scale"]
    assert mlp.dense_optimizer.adam.learning_rate.constant == theirs["learning_rate"]
    assert ours.train_data.global_batch_size == theirs["batch_size"] == 100
    assert ours.train_data.data_root == f"{theirs['data']}/train"
    assert ours.training.num_epochs == 1
    assert ours.runtime.num_threads == theirs["workers"] == 3
    assert ours.runtime.seed == theirs["seed"] == 5
    assert ours.runtime.enable_amp is (theirs["precision"] == "mixed_bfloat16") is bf16
    assert theirs["id_columns"] == ["id.C1", "id.C2"]
    assert theirs["table_rows"] == [12, 30]
    assert theirs["number_columns"] == ["x.I1", "x.I2"]
    labels = [ours.loss.click_label] + ([ours.loss.watch_time_label] if ours.loss.watch_time_label else [])
    assert theirs["label_columns"] == [f"y.{label}" for label in labels]
    assert (ours.loss.beta if beta else 0.0) == theirs["beta"] == beta
    # tml does not evaluate while it trains, nor do the others.
    assert ours.training.num_eval_steps == 0


def test_the_clock_of_the_others_leaves_their_first_call_out(monkeypatch):
    seconds = iter([10.0, 12.0, 17.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    clock = Clock()
    clock.tick(100)
    with pytest.raises(SystemExit, match="100 rows are trained in one call"):
        clock.timing()
    clock.tick(200)
    clock.tick(250)
    assert clock.timing() == {"num_examples": 150, "training_seconds": 7.0}


def test_contestants_are_all_or_those_that_are_named():
    assert chosen(None, beta=0.0) == list(CONTESTANTS)
    assert chosen(["Keras", "tml"], beta=0.0) == ["tml", "Keras"]
    assert "FuxiCTR" not in chosen(None, beta=0.1)
    with pytest.raises(SystemExit, match="clicks alone"):
        chosen(["tml", "FuxiCTR"], beta=0.1)
    with pytest.raises(SystemExit, match="name tml and at least one"):
        chosen(["tml", "tml float32"], beta=0.0)


def test_all_systems_scale_numbers_alike():
    rng = np.random.default_rng(0)
    train = rng.lognormal(1, 1, (500, 1)).astype(np.float32)
    train[::7] = np.nan
    test = np.array([[0.0], [3.0], [np.nan]], np.float32)
    _, theirs = scale(train, [test])
    log = np.log1p(train[~np.isnan(train)])
    expected = [[(np.log1p(value) - log.mean()) / log.std(), 0.0] for value in (0.0, 3.0)]
    np.testing.assert_allclose(theirs, [*expected, [0.0, 1.0]], rtol=1e-4)


@pytest.mark.parametrize("vocab", [None, list(range(10, 36))])
def test_the_features_of_the_clicks_name_every_column_once(vocab):
    config = FeatureConfig.model_validate(click_features(vocab, 3))
    names = [feature.name for feature in config.features if feature.name]
    assert names == [f"C{n}" for n in range(1, 27)]
    for column in (f"I{n}" for n in range(1, 14)):
        assert sum(bool(feature.match and re.fullmatch(feature.match, column)) for feature in config.features) == 1
    if vocab:
        assert [feature.identity.num_ids for feature in config.features[:26]] == vocab
    else:
        assert {feature.vocabulary.min_count for feature in config.features[:26]} == {3}
    assert {feature.side for feature in config.features[:13]} == {"user"}
    assert {feature.side for feature in config.features[13:26]} == {"candidate"}
    assert [label.name for label in config.labels] == ["click", "watch_time"]


def test_scores_equal_scikit_learns():
    rng = np.random.default_rng(0)
    probability = rng.random(400)
    click = (rng.random(400) < probability).astype(float)
    scores = click_scores(Predicted(probability, click))
    assert scores["AUC"] == pytest.approx(roc_auc_score(click, probability))
    blind = log_loss(click, np.full(400, click.mean()))
    assert scores["RCE"] == pytest.approx(100 * (1 - log_loss(click, probability) / blind))
    assert rce(click, np.full(400, click.mean())) == pytest.approx(0.0, abs=1e-9)


def test_calibration_error_by_hand():
    # Two bins of width 1/2. First: rate 1/2 against mean .2 on 2 rows; second: rate 1 against .9 on 1 row.
    error = calibration_error(np.array([1.0, 0.0, 1.0]), np.array([0.1, 0.3, 0.9]), num_bins=2)
    assert error == pytest.approx((2 * 0.3 + 0.1) / 3)
    assert calibration_error(np.array([1.0]), np.array([1.0])) == 0.0


def test_watch_scores_by_hand():
    predicted = Predicted(np.zeros(2), np.zeros(2), np.log1p([3.0, 10.0]), np.array([1.0, 10.0]))
    scores = watch_scores(predicted)
    assert scores["log1p MSE"] == pytest.approx(np.log(2) ** 2 / 2)
    assert scores["MAE s"] == pytest.approx(1.0)
    assert watch_scores(Predicted(np.zeros(1), np.zeros(1))) == {"log1p MSE": None, "MAE s": None}


def test_categories_that_training_lacks_have_no_code():
    known = np.array(["a", "c"])
    assert codes(np.array(["c", "b", "a", "z"]), known).tolist() == [1, -1, 0, -1]


@pytest.mark.parametrize("module", [bank_marketing, kuairand])
def test_the_configs_of_the_benchmarks_are_valid(module):
    parse_config(LightRankerConfig, yaml.safe_load(module.CONFIG.read_text()))
    features = FeatureConfig.model_validate(yaml.safe_load(module.FEATURES.read_text()))
    inputs = {feature.name or feature.match for feature in features.features}
    assert not {"duration_ms", "play_time_ms", "long_view", "is_profile_enter", "y"} & inputs


def test_the_seconds_of_a_call_are_never_an_input():
    features = FeatureConfig.model_validate(yaml.safe_load(bank_marketing.FEATURES.read_text()))
    for column in ("duration", "y"):
        patterns = [f.match for f in features.features if getattr(f, "match", None)]
        assert not [f for f in features.features if f.name == column or column in f.columns]
        assert not [pattern for pattern in patterns if re.fullmatch(pattern, column)]
    assert "duration" not in (*bank_marketing.NUMBERS, *bank_marketing.CATEGORIES)


def test_rates_stand_beside_the_rows_that_they_were_made_of(tmp_path):
    for split, click in (("train", [1, 0, 0]), ("valid", [1]), ("test", [0, 1])):
        (tmp_path / "rows").mkdir(exist_ok=True)
        (tmp_path / "encoded" / split).mkdir(parents=True)
        pq.write_table(pa.table({"age": range(len(click)), "click": click}), tmp_path / "rows" / f"{split}.parquet")
        rates = {
            "x.age": [0.0] * len(click),
            "v.rate.0": [5.0 + one for one in click],
            "y.y": [float(n) for n in click],
        }
        pq.write_table(pa.table(rates), tmp_path / "encoded" / split / "00000-a.parquet")
    folder, numbers = bank_marketing._with_rates(tmp_path / "rows", tmp_path / "encoded")
    assert numbers == (*bank_marketing.NUMBERS, "v.rate.0")
    assert pq.read_table(folder / "test.parquet").to_pydict() == {
        "age": [0, 1],
        "click": [0, 1],
        "v.rate.0": [5.0, 6.0],
    }
    with pytest.raises(AssertionError):
        bank_marketing._with_rates(tmp_path / "rows", _swapped(tmp_path / "encoded"))


def _swapped(encoded):
    """The same encoded rows with those of a split in another order."""
    path = next((encoded / "test").glob("*.parquet"))
    pq.write_table(pq.read_table(path).take([1, 0]), path)
    return encoded


def _impressions(folder, rows):
    names = ("user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_follow", "is_comment", "is_forward",
             "long_view", "play_time_ms", "duration_ms")  # fmt: skip
    columns = {name: [row.get(name, 0) for row in rows] for name in names}
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    users = sorted({row["user_id"] for row in rows})
    counts = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
    pq.write_table(
        pa.table({"user_id": users} | {name: [7] * len(users) for name in counts}),
        folder / "user_features_pure.parquet",
    )


def test_a_row_knows_earlier_days_only(tmp_path):
    day = {"user_id": 1, "video_id": 5}
    _impressions(
        tmp_path,
        [
            day | {"date": 20220408, "time_ms": 1, "is_click": 1, "play_time_ms": 1000, "hourmin": 2300},
            day | {"date": 20220410, "time_ms": 2, "is_click": 0, "play_time_ms": 0, "duration_ms": 4000},
            day | {"date": 20220410, "time_ms": 3, "is_click": 1, "play_time_ms": 9000, "video_id": 6},
            day | {"date": 20220421, "time_ms": 4, "is_click": 1},
        ],
    )
    rows = kuairand_rows.read_impressions(tmp_path).to_pylist()
    assert [row["user_seen"] for row in rows] == [0, 1, 1, 3]
    assert [row["user_click_rate"] for row in rows] == [None, 1.0, 1.0, pytest.approx(2 / 3)]
    assert rows[3]["user_watch"] == pytest.approx((np.log(2) + 0 + np.log(10)) / 3)
    assert [row["video_seen"] for row in rows] == [0, 1, 0, 2]
    assert [row["duration"] for row in rows] == [None, 4.0, None, None]
    assert rows[0]["hour"] == 23
    assert [row["watch_time"] for row in rows] == [1.0, 0.0, 9.0, 0.0]


def test_edges_are_engagements_of_the_first_days(tmp_path):
    _impressions(
        tmp_path,
        [
            {"user_id": 1, "video_id": 5, "date": kuairand_rows.LAST_EDGE_DAY, "is_click": 1, "is_follow": 1},
            {"user_id": 1, "video_id": 6, "date": kuairand_rows.LAST_EDGE_DAY + 1, "is_click": 1},
            {"user_id": 1, "video_id": 7, "date": 20220408},
        ],
    )
    edges = pq.read_table(kuairand_rows.write_edges(tmp_path, tmp_path / "edges.parquet")).to_pylist()
    assert sorted(edge["rel"] for edge in edges) == ["click", "follow"]
    assert {(edge["lhs"], edge["rhs"]) for edge in edges} == {(1, 5)}


def test_embeddings_are_missing_where_they_have_seen_the_answer(tmp_path):
    (tmp_path / "embeddings").mkdir()
    for name, ids in (("user", [3, 1]), ("video", [5])):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2 * len(ids), dtype=np.float32)), 2)
        pq.write_table(pa.table({"id": ids, "embedding": vectors}), tmp_path / "embeddings" / f"{name}.parquet")
    relations = [{"name": name, "params": [1.0, 10.0]} for name in ("click", "long_view")]
    pq.write_table(pa.Table.from_pylist(relations), tmp_path / "relations.parquet")
    rows = pa.table(
        {"user_id": [1, 1, 1, 9], "video_id": [5, 5, 6, 5], "date": [20220412, 20220413, 20220413, 20220420]}
    )
    found = kuairand_rows.with_embeddings(rows, tmp_path)
    assert found["twhin_user"].to_pylist() == [None, 1, 1, 9]
    assert found["twhin_video"].to_pylist() == [None, 5, 6, 5]
    # User 1 is (2, 3), video 5 is (0, 1): (2 + 1) * 0 + (3 + 10) * 1.
    assert found["twhin_click"].to_pylist() == [None, 13.0, None, None]


def test_splits_of_kuairand_follow_time(tmp_path):
    days = [20220408, 20220416, 20220417, 20220418, 20220421]
    kuairand_rows.write_splits(pa.table({"date": days}), tmp_path)
    found = {split: pq.read_table(tmp_path / f"{split}.parquet")["date"].to_pylist() for split in kuairand_rows.SPLITS}
    assert found == {"train": days[:2], "valid": days[2:3], "test": days[3:]}


def test_calls_are_split_anew_for_each_seed(tmp_path):
    table = pa.table({"row": list(range(100))})
    rows = []
    for seed in (0, 0, 1):
        folder = bank_marketing.write_split(table, seed, tmp_path / str(len(rows)))
        rows.append(
            [pq.read_table(folder / f"{split}.parquet")["row"].to_pylist() for split in ("train", "valid", "test")]
        )
        assert sorted(row for part in rows[-1] for row in part) == list(range(100))
        assert [len(part) for part in rows[-1]] == [60, 20, 20]
    assert rows[0] == rows[1] != rows[2]


def test_popularity_is_pulled_towards_the_mean():
    rows = pa.table(
        {
            "date": [20220408, 20220409, 20220420, 20220420],
            "click": [1, 0, 1, 1],
            "watch_time": [0.0, 0.0, 1.0, 2.0],
            "video_seen": [0.0, 0.0, 0.0, 10.0],
            "video_click_rate": pa.array([None, None, None, 1.0]),
            "video_watch": pa.array([None, None, None, 2.0]),
        }
    )
    found = kuairand.popularity(rows)
    assert found.probability.tolist() == [0.5, 0.75]
    assert found.log_seconds.tolist() == [0.0, 1.0]
    assert found.click.tolist() == [1.0, 1.0]
