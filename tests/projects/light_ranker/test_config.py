"""The config: what it refuses, and the configs that come with the project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tml.common.errors import ConfigError
from tml.core.config import format_config, load_config, parse_config
from tml.projects.light_ranker.config import LightRankerConfig

CONFIGS = Path(__file__).parents[3] / "projects" / "light_ranker" / "configs"


def _config(**sections: Any) -> dict[str, Any]:
    return {
        "features_dir": "prepared",
        "model": {"mlp": {}},
        "train_data": {"data_root": "prepared/train", "global_batch_size": 4},
        **sections,
    }


def test_a_small_config_is_accepted_and_comes_back_from_its_text():
    config = parse_config(LightRankerConfig, _config())
    assert config.model.mlp.hidden_sizes == [256, 128]
    assert "global_batch_size: 4" in format_config(config)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"mlp": {}, "lolly_lr": {}}}, "exactly one of 'mlp', 'lolly_lr'"),
        ({"model": {"mlp": {"embedding_dim": 6}}}, "multiple of 4, not 6"),
        ({"model": {"mlp": {"interaction": {"kind": "dot", "num_layers": 2}}}}, "leave them out with kind: dot"),
        ({"model": {"mlp": {"hiden_sizes": [4]}}}, "did you mean 'hidden_sizes'"),
        ({"loss": {"alpha": 0}}, "nothing to learn"),
        ({"loss": {"ranking": {"kind": "ranknet"}}}, "set train_data.shuffle to false"),
        ({"model": {"lolly_lr": {}}, "loss": {"watch_time_label": "watch"}}, "one label alone"),
        ({"model": {"lolly_lr": {"optimizer": {"rmsprop": {"learning_rate": 0.1}}}}}, "rmsprop cannot be used here"),
        ({"model": {"lolly_lr": {"optimizer": {"sgd": {"learning_rate": 1, "weight_decay": 0.1}}}}}, "weight_decay"),
        ({"train_data": {"data_root": "x"}}, "global_batch_size"),
        ({"train_data": {"data_root": "x", "global_batch_size": 4, "keep_rate": 0}}, "keep_rate"),
        ({"calibration": {"sample_rate": 1.5}}, "sample_rate"),
    ],
)
def test_fault_a_setting_that_cannot_be_is_refused_in_the_users_words(sections, said):
    with pytest.raises(ConfigError) as caught:
        parse_config(LightRankerConfig, _config(**sections))
    assert said in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_of_the_project_are_valid(path):
    assert load_config(LightRankerConfig, path).training.save_dir.startswith("runs/")
