"""Every option of `train.py`: the documented ones, and the original trainer's by their names, each with what it means.

An option goes to a field of the run's config (`field`), is read under its first name, or has no meaning here: then
`refused` says why, and giving it is an error.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def to_bool(text: str) -> bool:
    """True or false by its word; the original took every text but the empty one for true."""
    if text.lower() not in TRUE + FALSE:
        raise ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in TRUE


def to_sizes(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas."""
    return tuple(int(part) for part in text.split(","))


def to_floats(text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    return tuple(float(part) for part in text.split(","))


@dataclass(frozen=True)
class Option:
    """One option.

    Args:
        names: without dashes; all of them are accepted, the first is the one its value is kept under.
        kind: reads the value; `to_bool` options may be given without one.
        help: one line.
        field: dotted path of the config field that takes the value as it is.
        refused: why the option has no meaning here.
    """

    names: tuple[str, ...]
    kind: Callable[[str], Any]
    help: str = ""
    field: str | None = None
    refused: str | None = None


def _no(why: str, *names: str) -> list[Option]:
    return [Option((name,), str, refused=why) for name in names]


DOCUMENTED = [
    Option(("train_data_path", "train.data_dir"), str, "Prepared folder, table (parquet, CSV, TSV) or block files."),
    Option(("eval_data_path", "eval.data_dir"), str, "The same, of the rows to evaluate on after every epoch."),
    Option(("model_dir", "save_dir"), str, "Folder of the run; a run continues from what lies there."),
    Option(("num_epochs",), int, "Passes over the training data (default 10)."),
    Option(
        ("learning_rate", "train.learning_rate"),
        float,
        "Of the dense layers, or of lolly_lr's weights (default 0.001).",
    ),
    Option(("feature_config",), str, "features.yaml for raw data; without one a proposal is made, used and printed."),
    Option(("group",), str, "Column of the request or user whose rows are ranked together, in raw data."),
    Option(("record_config",), str, "For block files: YAML of the features' names, types and columns."),
    Option(("model",), str, "mlp (default), or lolly_lr, which options of the latter imply."),
    Option(
        ("hidden_sizes", "hidden_size"), to_sizes, "Units of the hidden layers (256,128).", "model.mlp.hidden_sizes"
    ),
    Option(("embedding_size",), int, "Length of the embeddings (16).", "model.mlp.embedding_dim"),
    Option(("alpha",), float, "Factor of the click's loss (1).", "loss.alpha"),
    Option(("beta",), float, "Factor of the watch time's loss (1).", "loss.beta"),
    Option(("export_dir",), str, "Folder for the served model; model_dir/export if not given."),
    Option(("set",), str, "A further setting of the run's config, section.key=value; may be repeated."),
]

TRAINER = [
    Option(("train.batch_size", "train_batch_size"), int, "Examples of a step on all ranks (default 1024)."),
    Option(("eval.batch_size", "eval_batch_size"), int, "Examples of an evaluation's batch.", "evaluation.batch_size"),
    Option(("train.steps", "train_steps"), int, "Steps between evaluations; -1 (default) for a pass over the data."),
    Option(("train.max_steps", "train_max_steps"), int, "Steps in all, instead of num_epochs; 0 or less: no limit."),
    Option(("eval.steps", "eval_steps"), int, "Batches of an evaluation; -1 for all.", "training.num_eval_steps"),
    Option(("train.early_stop_patience", "early_stop_patience"), int, "Evaluations to wait; -1 (default) for never."),
    Option(("train.early_stop_tolerance", "early_stop_tolerance"), float, "A smaller change is no improvement."),
    Option(("train.early_stop_metric", "early_stop_metric"), str, "Metric to watch (default rce)."),
    Option(
        ("overwrite_save_dir",), to_bool, "Start afresh, without what lies there.", "training.overwrite_save_dir"
    ),
    Option(("continue_from_checkpoint",), to_bool, "What a run does anyway; false is refused."),
    Option(("max_duration",), float, "Seconds of training, over restarts too.", "training.max_duration_in_s"),
    Option(("disable_tensorboard",), to_bool, "Write no event files."),
    Option(
        ("config.keep_checkpoint_max", "keep_checkpoint_max"), int, "Checkpoints to keep.",
        "training.checkpoint_max_to_keep",
    ),
    Option(("config.tf_random_seed", "tf_random_seed"), int, "Of all random draws.", "runtime.seed"),
    Option(("optimizer",), str, "SGD, Adagrad, Adam, Ftrl, Momentum, RMSProp, LazyAdam or DGC."),
    Option(
        ("gradient_noise_scale",), float, "Standard deviation of noise on gradients.", "training.gradients.noise_scale"
    ),
    Option(("clip_gradients",), float, "Largest global norm of gradients.", "training.gradients.clip_norm"),
    Option(("dgc.density", "dgc_density"), float, "Share of each matrix's rows that is sent (0.1)."),
    Option(("dgc.density_decay", "dgc_density_decay"), to_bool, "Whether it falls to dgc.min_density (true)."),
    Option(("dgc.density_decay_steps", "dgc_density_decay_steps"), int, "Steps from fall to fall (10000)."),
    Option(("dgc.density_decay_rate", "dgc_density_decay_rate"), float, "Factor of a fall (0.5)."),
    Option(("dgc.min_density", "dgc_min_density"), float, "Where the density stops falling (0.1)."),
    Option(("dgc.accumulation", "dgc_accumulation"), to_bool, "Whether rows not sent are kept for later (false)."),
    Option(("num_mkl_threads",), int, "Threads of an operation.", "runtime.num_threads"),
    Option(("verbosity",), str, "debug, info, warn or error."),
]  # fmt: skip

DATA = [
    Option(("train.files_list", "train_files_list"), str, "JSON file that keeps the list of training files."),
    Option(("eval.files_list", "eval_files_list"), str, "JSON file that keeps the list of evaluation files."),
    Option(("train.overwrite_files_list", "train_overwrite_files_list"), to_bool, "Find the training files again."),
    Option(("eval.overwrite_files_list", "eval_overwrite_files_list"), to_bool, "Find the evaluation files again."),
    Option(("train.start_date", "train.start_datetime"), str, "First date of a path with codes such as %%Y/%%m/%%d."),
    Option(("train.end_date", "train.end_datetime"), str, "Last date, included."),
    Option(("eval.start_date", "eval.start_datetime"), str, "First date of the evaluation's path."),
    Option(("eval.end_date", "eval.end_datetime"), str, "Last date, included."),
    Option(("datetime_format",), str, "Format of the dates (%%Y/%%m/%%d)."),
    Option(("hour_resolution",), int, "Hours from one folder to the next (1)."),
    Option(("train.keep_rate", "train_keep_rate"), float, "Share of training examples used.", "train_data.keep_rate"),
    Option(("train.parts_downsampling_rate", "train_parts_downsampling_rate"), float, "Share of training files used."),
    Option(("eval.parts_downsampling_rate", "eval_parts_downsampling_rate"), float, "Share of evaluation files used."),
    Option(("allow_train_eval_overlap",), to_bool, "Evaluate on files that are trained on."),
]

EARLYBIRD = [
    Option(("label",), str, "The label to predict.", "loss.click_label"),
    Option(("input_size_bits",), int, "Ids of lolly_lr lie in 2 ** bits.", "model.lolly_lr.input_size_bits"),
    Option(("discretizer.num_bins", "discretizer_num_bins"), int, "Bins of a number.", "model.lolly_lr.num_bins"),
    Option(("discretizer.output_size_bits", "discretizer_output_size_bits"), int, "As input_size_bits; must agree."),
    Option(
        ("discretizer.keep_rate", "discretizer_keep_rate"), float, "Share of examples calibrated on.",
        "calibration.sample_rate",
    ),
    Option(("discretizer.save_dir", "discretizer_save_dir"), str, "Folder of a calibration, with the option below."),
    Option(("model.use_existing_discretizer",), to_bool, "Use the calibration of discretizer.save_dir."),
    Option(
        ("lolly_model_tsv",), str, "Start from the weights and bins of a lolly model.", "model.lolly_lr.initial_model"
    ),
    Option(("replicate_lolly",), to_bool, "Learn the logit of the logged score instead of the label."),
    Option(("lolly_score_label",), str, "Label with that score (default timelines.earlybird_score)."),
    Option(("loss_function",), str, "pointwise (default), ranknet, lambdarank, listnet or listmle."),
]  # fmt: skip

WEIGHTED_LABELS = (
    "is_clicked", "is_favorited", "is_open_linked", "is_photo_expanded", "is_profile_clicked", "is_replied",
    "is_retweeted", "is_video_playback_50",
)  # fmt: skip

WEIGHTS = [
    Option((f"weight.{label}",), float, f"Weight of examples with {label}, instead of the record's default.")
    for label in WEIGHTED_LABELS
]

REFUSED = [
    *_no("evaluation follows steps, not a clock: give --train.steps", "eval.period", "eval_period", "eval.delay"),
    *_no("metrics are those of evaluations; the training loss is always logged", "train.log_metrics"),
    *_no(
        "ranks share the rows among themselves: start several with torchrun, or give each job files of its own",
        "train.dataset_shards", "train_dataset_shards", "train.dataset_shard_index", "train_dataset_shard_index",
    ),
    *_no("a background thread makes batches: --set runtime.num_prefetch_batches=N", "data_threads", "num_threads"),
    *_no(
        "several processes are started by torchrun --nproc_per_node or `tml launch`, and train in step",
        "num_workers", "distributed",
    ),
    *_no("there are no parameter servers", "distributed_training_cleanup", "disable_auto_ps_shutdown"),
    *_no("start `tensorboard --logdir MODEL_DIR/tensorboard` yourself", "tensorboard_port"),
    *_no("the trainer opens no ports", "health_port", "stats_port"),
    *_no("logs go to the terminal and, with runtime.log.json_lines, to a file", "log_aggregation_app_id"),
    *_no(
        "runs are recorded in model_dir; another tracker is --set runtime.tracking.mlflow.uri=... or wandb",
        "experiment_tracking_path", "disable_experiment_tracking",
    ),
    *_no(
        "checkpoints follow steps, not a clock: --set training.checkpoint_every_n=N",
        "config.save_checkpoints_secs", "save_checkpoints_secs",
    ),
    *_no("learning rates are always logged", "show_optimizer_summaries"),
    *_no(
        "importances are a command of their own: `tml light-ranker importance --help`",
        *(f"feature_importance.{name}" for name in (
            "algorithm", "sensitivity", "dont_build_tree", "split_feature_group_on_period", "example_count", "data_dir",
            "metric", "is_metric_larger_the_better", "is_metric_smaller_the_better",
        )),
    ),
    *_no("features and labels are named in --feature_config, those of block files in --record_config", "data_spec"),
    *_no("all evaluation rows count; sample the files instead", "eval.keep_rate", "eval_keep_rate"),
    *_no("evaluate on training rows by giving their path as --eval_data_path", "eval_name"),
    *_no("a calibration is read at once; a batch size would change nothing", "discretizer.batch_size"),
    *_no("rows are sampled one by one: --discretizer.keep_rate", "discretizer.parts_downsampling_rate"),
    *_no("the export has one form and no module name", "export_module_name"),
    *_no("look at rows with `tml light-ranker inspect`", "print_data_examples"),
    *_no("how features enter is said in features.yaml", "use_dense_tensor", "dense_normalization",
         "sparse_normalization", "mask"),
    *_no("pruning is not built", "pruning.iter", "pruning.burn_in", "pruning.flops_target", "pruning.decay"),
]  # fmt: skip

OPTIONS: list[Option] = [*DOCUMENTED, *TRAINER, *DATA, *EARLYBIRD, *WEIGHTS, *REFUSED]

# Learning-rate decays, given last: name -> its own options. A value of None has to be given.
DECAYS: dict[str, dict[str, tuple[Callable[[str], Any], Any]]] = {
    "no_learning_rate_decay": {},
    "exponential_learning_rate_decay": {"decay_steps": (float, None), "exponential_decay_rate": (float, None)},
    "polynomial_learning_rate_decay": {
        "decay_steps": (float, None), "end_learning_rate": (float, 1e-4), "polynomial_power": (float, 1.0),
    },
    "piecewise_constant_learning_rate_decay": {
        "piecewise_constant_boundaries": (to_sizes, None), "piecewise_constant_values": (to_floats, None),
    },
    "inverse_learning_rate_decay": {
        "decay_rate": (float, None), "min_learning_rate": (float, None), "decay_steps": (float, 1.0),
    },
    "cosine_learning_rate_decay": {"decay_steps": (float, None), "alpha": (float, 0.0)},
    "cosine_restarts_learning_rate_decay": {
        "first_decay_steps": (float, None), "alpha": (float, 0.0), "t_mul": (float, 2.0), "m_mul": (float, 1.0),
    },
}  # fmt: skip
