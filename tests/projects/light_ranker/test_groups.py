"""Rows of a group lie together where a loss of rankings compares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.projects.light_ranker.tiny_run import config_of, run, tiny_settings, write_data
from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.check import check_run
from tml.projects.light_ranker.data import groups as groups_module
from tml.projects.light_ranker.data.groups import require_groups_together
from tml.projects.light_ranker.data.sample_clicks import ClickParameters, sample_clicks
from tml.projects.light_ranker.features.spec import FeatureSpec
from tml.projects.light_ranker.trainer import DataRecordTrainer

RANKING = {"loss": {"ranking": {"kind": "lambdarank"}}, "train_data": {"shuffle": False}}


def write_groups(path: Path, groups: list[int]) -> str:
    pq.write_table(pa.table({"group": pa.array(groups, pa.int64())}), path, row_group_size=3)
    return str(path)


@pytest.mark.parametrize("block_rows", [2, 3, 100])
@pytest.mark.parametrize(
    ("groups", "row"),
    [
        ([], None),
        ([4], None),
        ([7, 7, 7, 7, -1, -1, 3], None),
        ([7, 7, 3, 7, 3, 3], 3),
        ([1, 2, 2, 2, 2, 5, 5, 1], 7),
    ],
)
def test_a_group_that_comes_again_in_a_file_is_named(tmp_path, monkeypatch, groups, row, block_rows):
    monkeypatch.setattr(groups_module, "_BLOCK_ROWS", block_rows)
    path = write_groups(tmp_path / "a.parquet", groups)
    if row is None:
        require_groups_together([path, path])
        return
    with pytest.raises(DataError, match=rf"a\.parquet, row {row}\b"):
        require_groups_together([path])


def test_training_and_check_refuse_scattered_groups_for_a_ranking_loss_alone(tmp_path):
    data = write_data(tmp_path / "data", groups=True)
    good = tiny_settings(data, tmp_path / "run", training={"num_epochs": 1}, **RANKING)
    assert check_run(config_of(good), "cpu")["rows.train"] == 4000
    path = next(iter(sorted(Path(data.split("train")).glob("*.parquet"))))
    table = pq.read_table(path)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), path)
    with pytest.raises(DataError, match="do not lie together"):
        check_run(config_of(good), "cpu")
    assert run(good, "calibrate") == 0
    with pytest.raises(DataError, match="do not lie together"):
        run(good, "train")
    plain = tiny_settings(data, tmp_path / "run", training={"num_epochs": 1})
    assert check_run(config_of(plain), "cpu")["rows.train"] == 4000


def test_raw_data_is_grouped_by_the_column_that_is_named(tmp_path, capsys):
    clicks = tmp_path / "clicks"
    sample_clicks(ClickParameters(2_000), clicks)
    settings = {"loss.ranking": {"kind": "listnet"}, "train_data.shuffle": False, "training.num_train_steps": 2}
    params = {"model_dir": str(tmp_path / "run"), "hidden_sizes": [4], "num_epochs": 1, "settings": settings}
    trainer = DataRecordTrainer({**params, "group": "request_id"})
    model = trainer.train(str(clicks / "train"), str(clicks / "valid"))
    assert "group: request_id" in capsys.readouterr().out
    assert FeatureSpec.load(model.config.features_dir).has_group
    assert 0 < model.metrics["ndcg@10"] <= 1
    with pytest.raises(ConfigError, match="a ranking loss needs groups"):
        DataRecordTrainer({**params, "model_dir": str(tmp_path / "other")}).train(str(clicks / "train"))
    with pytest.raises(ConfigError, match="raw data, and the data is prepared"):
        trainer.train(model.config.features_dir)
