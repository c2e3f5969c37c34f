from __future__ import annotations

from typing import Any

import pytest

from tml.common.errors import ConfigError
from tml.core.config import parse_config
from tml.core.optimizers.config import LearningRateConfig
from tml.core.optimizers.schedules import build_schedule
from tml.projects.light_ranker.argument_params import params_of
from tml.projects.light_ranker.argument_table import DECAYS, OPTIONS, REFUSED
from tml.projects.light_ranker.arguments import parse_arguments
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.train import source_of
from tml.projects.light_ranker.trainer import TrainerParams
from tml.projects.light_ranker.training_data import DataSource

DATA = "--train_data_path /data/train --eval_data_path /data/eval --model_dir /runs/m"


def params(words: str = "") -> TrainerParams:
    return params_of(parse_arguments(words.split()))


def refused(words: str) -> str:
    with pytest.raises(ConfigError) as raised:
        params(words)
    return str(raised.value)


def test_the_documented_command_has_the_documented_defaults():
    arguments = parse_arguments(DATA.split())
    found = params_of(arguments)
    assert (found.num_epochs, found.learning_rate) == (10, 0.001)
    assert (found.model, found.model_dir) == ("mlp", "/runs/m")
    assert source_of(arguments, "train") == DataSource("/data/train")
    assert source_of(arguments, "eval") == DataSource("/data/eval")


def test_the_documented_command_line_is_read():
    words = [*DATA.replace(" /", "=/").split(), "--num_epochs=3", "--learning_rate=0.01"]
    found = params_of(parse_arguments(words))
    assert (found.num_epochs, found.learning_rate, found.model_dir) == (3, 0.01, "/runs/m")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("--train.data_dir /d", "train_data_path"),
        ("--eval.data_dir /d", "eval_data_path"),
        ("--save_dir /d", "model_dir"),
        ("--train.learning_rate 0.5", "learning_rate"),
        ("--train_batch_size 7", "train.batch_size"),
        ("--early_stop_patience 7", "train.early_stop_patience"),
        ("--train.start_datetime 2020/01/01", "train.start_date"),
        ("--keep_checkpoint_max 7", "config.keep_checkpoint_max"),
    ],
)
def test_the_originals_names_are_aliases(alias, name):
    assert list(parse_arguments(alias.split()).values) == [name]


def test_a_name_and_its_alias_together_are_refused():
    assert "given twice" in refused("--train_data_path a --train.data_dir b")
    assert "given twice" in refused("--num_epochs 1 --num_epochs 1")


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--eval.batch_size 64", "evaluation.batch_size", 64),
        ("--eval.steps 5", "training.num_eval_steps", 5),
        ("--max_duration 60", "training.max_duration_in_s", 60.0),
        ("--config.keep_checkpoint_max 20", "training.checkpoint_max_to_keep", 20),
        ("--config.tf_random_seed 11", "runtime.seed", 11),
        ("--num_mkl_threads 2", "runtime.num_threads", 2),
        ("--verbosity warn", "runtime.log.level", "warning"),
        ("--disable_tensorboard", "runtime.tracking.tensorboard", False),
        ("--clip_gradients 5", "training.gradients.clip_norm", 5.0),
        ("--gradient_noise_scale 0.1", "training.gradients.noise_scale", 0.1),
        ("--train.keep_rate 0.5", "train_data.keep_rate", 0.5),
        ("--discretizer.keep_rate 0.0008", "calibration.sample_rate", 0.0008),
        ("--label favorited", "loss.click_label", "favorited"),
        ("--hidden_sizes 64,32", "model.mlp.hidden_sizes", (64, 32)),
        ("--hidden_size 64", "model.mlp.hidden_sizes", (64,)),
        ("--embedding_size 8", "model.mlp.embedding_dim", 8),
        ("--alpha 2 --beta 0.5", "loss.beta", 0.5),
        ("--input_size_bits 18", "model.lolly_lr.input_size_bits", 18),
        ("--discretizer.output_size_bits 18", "model.lolly_lr.input_size_bits", 18),
        ("--discretizer.num_bins 10", "model.lolly_lr.num_bins", 10),
        ("--lolly_model_tsv m.tsv", "model.lolly_lr.initial_model", "m.tsv"),
        ("--replicate_lolly", "model.lolly_lr.replicate_label", "timelines.earlybird_score"),
        ("--replicate_lolly True --lolly_score_label s", "model.lolly_lr.replicate_label", "s"),
        ("--set training.strict_resume=true", "training.strict_resume", True),
        ("--set evaluation.ndcg_at=[1,2]", "evaluation.ndcg_at", [1, 2]),
    ],
)
def test_an_option_becomes_a_setting_of_the_run(words, field, value):
    assert params(words).settings[field] == value


def test_every_setting_is_a_field_of_the_config():
    paths = {option.field for option in OPTIONS if option.field}
    for path in paths:
        section: Any = LightRankerConfig
        for name in path.split("."):
            info = section.model_fields[name]
            section = next(
                (a for a in (info.annotation, *getattr(info.annotation, "__args__", ())) if _is_section(a)), None
            )
    assert len(paths) > 15


def _is_section(annotation: Any) -> bool:
    return hasattr(annotation, "model_fields")


@pytest.mark.parametrize(
    ("words", "epochs", "steps", "per_evaluation"),
    [
        ("", 10, None, None),
        ("--train.steps -1", 10, None, None),
        ("--train.steps 50", None, 50, 50),
        ("--train.steps 50 --num_epochs 2", 2, None, 50),
        ("--train.steps 50 --train.max_steps 200", None, 200, 50),
        ("--train.max_steps 200 --num_epochs 1", 1, 200, None),
        ("--train.max_steps -1 --max_duration 5", 1_000_000, None, None),
        ("--train.max_steps 0 --train.early_stop_patience 2", 1_000_000, None, None),
    ],
)
def test_steps_and_epochs(words, epochs, steps, per_evaluation):
    found = params(words)
    assert (found.num_epochs, found.steps_per_evaluation) == (epochs, per_evaluation)
    assert found.settings.get("training.num_train_steps") == steps


def test_training_without_an_end_is_refused():
    assert "never end" in refused("--train.max_steps 0")


def test_early_stopping_knows_its_metrics_direction():
    assert params("--train.early_stop_patience 3 --train.early_stop_tolerance 0.01").settings[
        "training.early_stopping"
    ] == {"metric": "rce", "minimize": False, "patience": 3, "tolerance": 0.01}
    section = params("--early_stop_patience 3 --early_stop_metric loss").settings["training.early_stopping"]
    assert section["minimize"] is True
    assert "training.early_stopping" not in params("--train.early_stop_patience -1").settings
    assert "without --train.early_stop_patience" in refused("--train.early_stop_tolerance 0.1")


@pytest.mark.parametrize("word", ["False", "false", "no", "0"])
def test_false_means_false(word):
    assert parse_arguments(["--overwrite_save_dir", word]).settings() == {"training.overwrite_save_dir": False}
    assert params(f"--replicate_lolly {word} --model lolly_lr").settings == {}
    assert params(f"--dgc.accumulation {word} --optimizer DGC").settings["training.gradients.compression"] == {
        "unit": "row", "density": 0.1, "momentum": 0.0, "accumulate": False,
    }  # fmt: skip


def test_a_flag_needs_no_value_and_takes_true():
    for words in (["--overwrite_save_dir"], ["--overwrite_save_dir=True"], ["--overwrite_save_dir", "yes"]):
        assert parse_arguments(words).settings() == {"training.overwrite_save_dir": True}
    assert "neither true nor false" in refused("--overwrite_save_dir maybe")


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("SGD", "sgd"), ("Adagrad", "adagrad"), ("Adam", "adam"), ("Ftrl", "ftrl"), ("Momentum", "momentum"),
        ("RMSProp", "rmsprop"), ("LazyAdam", "lazy_adam"), ("dgc", "sgd"),
    ],
)  # fmt: skip
def test_optimizers_by_the_originals_names(name, section):
    kind, values = params(f"--optimizer {name}").optimizer
    assert kind == section
    assert values == ({"initial_accumulator": 0.1} if section == "adagrad" else {})


def test_a_density_that_falls_is_a_decay():
    words = "--optimizer DGC --dgc.density 0.4 --dgc.min_density 0.05 --dgc.density_decay_steps 10"
    section = params(words).settings["training.gradients.compression"]
    assert section["density"] == 0.05
    assert section["density_decay"] == {"initial_density": 0.4, "rate": 0.5, "every_n": 10}
    assert (
        "density_decay" not in params(f"{words} --dgc.density_decay False").settings["training.gradients.compression"]
    )


def rate_of(words: str, step: int) -> float:
    return build_schedule(parse_config(LearningRateConfig, params(words).learning_rate))(step)


@pytest.mark.parametrize(
    ("words", "step", "expected"),
    [
        (
            "--learning_rate 0.1 exponential_learning_rate_decay --decay_steps 10 --exponential_decay_rate 0.5",
            20,
            0.025,
        ),
        ("--learning_rate 0.1 polynomial_learning_rate_decay --decay_steps 10 --end_learning_rate 0.02", 5, 0.06),
        ("--learning_rate 1 inverse_learning_rate_decay --decay_rate 0.5 --min_learning_rate 0.01", 2, 0.5),
        ("--learning_rate 0.2 cosine_learning_rate_decay --decay_steps 10 --alpha 0.5", 5, 0.15),
        ("--learning_rate 0.2 cosine_restarts_learning_rate_decay --first_decay_steps 10", 10, 0.2),
        ("--learning_rate 0.2 cosine_restarts_learning_rate_decay --first_decay_steps 10", 5, 0.1),
    ],
)
def test_learning_rate_decays_follow_the_originals_formulas(words, step, expected):
    assert rate_of(words, step) == pytest.approx(expected)


def test_a_piecewise_rate_holds_up_to_and_with_its_boundary():
    words = (
        "piecewise_constant_learning_rate_decay --piecewise_constant_boundaries=100,200 "
        "--piecewise_constant_values=1.0,0.5,0.1"
    )
    assert [rate_of(words, step) for step in (0, 100, 101, 200, 201)] == [1.0, 1.0, 0.5, 0.5, 0.1]
    assert "no effect" in refused(f"--learning_rate 1 {words}")


def test_the_default_is_no_decay():
    assert params("--learning_rate 0.1 no_learning_rate_decay").learning_rate == 0.1


def test_a_decay_names_its_missing_option():
    assert "--min_learning_rate" in refused("inverse_learning_rate_decay --decay_rate 1")
    assert "not whole" in refused("cosine_learning_rate_decay --decay_steps 1.5")
    assert "unknown option" in refused("cosine_learning_rate_decay --decay_steps 1 --num_epochs 1")
    assert set(DECAYS) == {
        f"{kind}_learning_rate_decay"
        for kind in ("no", "exponential", "polynomial", "piecewise_constant", "inverse", "cosine", "cosine_restarts")
    }


@pytest.mark.parametrize("option", REFUSED, ids=lambda option: option.names[0])
def test_an_option_without_meaning_is_refused_with_the_reason(option):
    for words in ([f"--{option.names[0]}"], [f"--{option.names[0]}", "3"]):
        with pytest.raises(ConfigError, match="no meaning here") as raised:
            parse_arguments(words)
        assert raised.value.limit == option.refused
        assert len(option.refused) > 15


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--train.batchsize 3", "did you mean --train.batch_size"),
        ("--frobnicate", "unknown option"),
        ("--num_epochs three", "invalid int value"),
        ("--optimizer Lion", "unknown value"),
        ("--verbosity loud", "unknown value"),
        ("--loss_function attrank", "unknown value"),
        ("--model transformer", "unknown model"),
        ("--model mlp --input_size_bits 4", "option of another model"),
        ("--model lolly_lr --hidden_sizes 4", "option of another model"),
        ("--input_size_bits 4 --discretizer.output_size_bits 5", "one space"),
        ("--discretizer.save_dir d", "go together"),
        ("--model.use_existing_discretizer", "go together"),
        ("--continue_from_checkpoint False", "--overwrite_save_dir"),
        ("--dgc.density 0.5", "without --optimizer DGC"),
        ("--lolly_score_label s --model lolly_lr", "without --replicate_lolly"),
        ("--set training.num_epochs", "section.key=value"),
    ],
)
def test_what_contradicts_itself_is_refused(words, what):
    assert what in refused(words)


def test_an_existing_calibration_is_loaded():
    found = params("--model.use_existing_discretizer True --discretizer.save_dir /c")
    assert found.settings == {"calibration.load_dir": "/c"}


def test_a_ranking_loss_keeps_groups_together():
    found = params("--loss_function listnet").settings
    assert found == {"loss.ranking": {"kind": "listnet"}, "train_data.shuffle": False}
    assert params("--loss_function pointwise").settings == {}
    assert (params("--group request_id").group, params("--loss_function listnet").group) == ("request_id", None)


def test_engagements_have_weights():
    assert params("--weight.is_replied 20 --weight.is_clicked 0.1").example_weights == {
        "is_clicked": 0.1,
        "is_replied": 20.0,
    }


def test_dates_and_shares_of_files_belong_to_their_split():
    words = (
        "--train.data_dir d/%Y/%m/%d --train.start_date 2020/01/01 --train.end_date 2020/01/02 --hour_resolution 24 "
        "--train.parts_downsampling_rate 0.2 --train.files_list l.json"
    )
    assert source_of(parse_arguments(words.split()), "train") == DataSource(
        "d/%Y/%m/%d", "2020/01/01", "2020/01/02", None, 24, "l.json", False, 0.2
    )
    with pytest.raises(ConfigError, match="eval_data_path is missing"):
        source_of(parse_arguments(["--eval.start_date", "2020/01/01"]), "eval")
    with pytest.raises(ConfigError, match="has no list"):
        source_of(parse_arguments(["--eval.data_dir", "d", "--eval.overwrite_files_list"]), "eval")
