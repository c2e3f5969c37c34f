"""From the options of a command line to a trainer's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from tml.common.errors import ConfigError
from tml.projects.light_ranker.argument_table import OPTIONS
from tml.projects.light_ranker.arguments import NO_DECAY, Arguments
from tml.projects.light_ranker.importance import larger_is_better
from tml.projects.light_ranker.trainer import TrainerParams

DEFAULTS = TrainerParams()
LOGGED_SCORE = "timelines.earlybird_score"
FOREVER = 1_000_000
_LEVELS = {"debug": "debug", "info": "info", "warn": "warning", "warning": "warning", "error": "error"}
# TensorFlow 1's names and defaults.
_OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {}),
    "adagrad": ("adagrad", {"initial_accumulator": 0.1}),
    "adam": ("adam", {}),
    "ftrl": ("ftrl", {}),
    "momentum": ("momentum", {}),
    "rmsprop": ("rmsprop", {}),
    "lazyadam": ("lazy_adam", {}),
    "dgc": ("sgd", {}),
}
_LOLLY_OPTIONS = ("replicate_lolly", "lolly_score_label", "discretizer.output_size_bits")


def params_of(arguments: Arguments) -> TrainerParams:
    """What the options say to a trainer.

    Raises:
        ConfigError: options contradict each other, or have a value that is out of range.
    """
    model = _model(arguments)
    num_epochs, lengths = _length(arguments)
    settings = {
        **arguments.settings(),
        **lengths,
        **_early_stopping(arguments),
        **_runtime(arguments),
        **_calibration(arguments),
        **_loss(arguments),
        **_compression(arguments),
        **(_lolly(arguments) if model == "lolly_lr" else {}),
        **_set(arguments),
    }
    steps = arguments.get("train.steps", -1)
    return TrainerParams(
        model_dir=arguments.get("model_dir", DEFAULTS.model_dir),
        model=model,
        num_epochs=num_epochs,
        learning_rate=_learning_rate(arguments),
        optimizer=_optimizer(arguments),
        batch_size=arguments.get("train.batch_size", DEFAULTS.batch_size),
        steps_per_evaluation=steps if steps > 0 else None,
        feature_config=arguments.get("feature_config"),
        group=arguments.get("group"),
        record_config=arguments.get("record_config"),
        example_weights=arguments.example_weights(),
        allow_overlap=arguments.get("allow_train_eval_overlap", False),
        settings=settings,
    )


def _model(arguments: Arguments) -> str:
    of_lolly = [
        o.names[0] for o in OPTIONS if (o.field or "").startswith("model.lolly_lr.") or o.names[0] in _LOLLY_OPTIONS
    ]
    of_mlp = [o.names[0] for o in OPTIONS if (o.field or "").startswith("model.mlp.")]
    given = [name for name in of_lolly if name in arguments.values]
    model = arguments.get("model", "lolly_lr" if given else "mlp")
    wrong = given if model == "mlp" else [name for name in of_mlp if name in arguments.values]
    if wrong:
        raise ConfigError(
            "option of another model", where=f"--{wrong[0]}", value=model, fix="leave it out, or change --model"
        )
    return str(model)


def _length(arguments: Arguments) -> tuple[int | None, dict[str, Any]]:
    """Epochs and steps: without either, `train.steps` alone is one round, as in the original."""
    epochs, most, steps = (arguments.get(name) for name in ("num_epochs", "train.max_steps", "train.steps"))
    if most is None:
        if epochs is None and steps is not None and steps > 0:
            return None, {"training.num_train_steps": steps}
        return (DEFAULTS.num_epochs if epochs is None else epochs), {}
    if most > 0:
        return epochs, {"training.num_train_steps": most}
    if not any(arguments.get(name) is not None for name in ("num_epochs", "max_duration", "train.early_stop_patience")):
        raise ConfigError(
            "training would never end", where="--train.max_steps", value=most,
            fix="give --train.early_stop_patience, --max_duration or --num_epochs",
        )  # fmt: skip
    return (FOREVER if epochs is None else epochs), {}


def _early_stopping(arguments: Arguments) -> dict[str, Any]:
    patience = arguments.get("train.early_stop_patience", -1)
    others = [name for name in ("train.early_stop_metric", "train.early_stop_tolerance") if name in arguments.values]
    if patience <= 0:
        if others:
            raise ConfigError("option of early stopping without --train.early_stop_patience", where=f"--{others[0]}")
        return {}
    metric = arguments.get("train.early_stop_metric", "rce")
    section = {
        "metric": metric,
        "minimize": not larger_is_better(metric),
        "patience": patience,
        "tolerance": arguments.get("train.early_stop_tolerance", 0.0),
    }
    return {"training.early_stopping": section}


def _runtime(arguments: Arguments) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if arguments.get("continue_from_checkpoint") is False:
        raise ConfigError("a run continues from its checkpoints", where="--continue_from_checkpoint", value=False,
                          fix="give --overwrite_save_dir to start afresh")  # fmt: skip
    if "disable_tensorboard" in arguments.values:
        found["runtime.tracking.tensorboard"] = not arguments.get("disable_tensorboard")
    level = arguments.get("verbosity")
    if level is not None:
        found["runtime.log.level"] = _one_of("verbosity", level, _LEVELS)
    return found


def _calibration(arguments: Arguments) -> dict[str, Any]:
    folder, wanted = arguments.get("discretizer.save_dir"), arguments.get("model.use_existing_discretizer", False)
    if wanted != (folder is not None):
        raise ConfigError(
            "these options go together", where="--discretizer.save_dir, --model.use_existing_discretizer",
            value=(folder, wanted), fix="give both, or neither: the run fits a calibration of its own",
        )  # fmt: skip
    return {"calibration.load_dir": folder} if folder is not None else {}


def _loss(arguments: Arguments) -> dict[str, Any]:
    known = {kind: kind for kind in ("pointwise", "ranknet", "lambdarank", "listnet", "listmle")}
    kind = _one_of("loss_function", arguments.get("loss_function", "pointwise"), known)
    # Rows of a group must lie together; pointwise is the cross-entropy that is there anyway.
    return {} if kind == "pointwise" else {"loss.ranking": {"kind": kind}, "train_data.shuffle": False}


def _compression(arguments: Arguments) -> dict[str, Any]:
    names = [name for name in arguments.values if name.startswith("dgc.")]
    if arguments.get("optimizer", "").lower() != "dgc":
        if names:
            raise ConfigError("option of gradient compression without --optimizer DGC", where=f"--{names[0]}")
        return {}
    density, least = arguments.get("dgc.density", 0.1), arguments.get("dgc.min_density", 0.1)
    falls = arguments.get("dgc.density_decay", True) and density > least
    section: dict[str, Any] = {
        "unit": "row",
        "density": least if falls else density,
        "momentum": 0.0,
        "accumulate": arguments.get("dgc.accumulation", False),
    }
    if falls:
        rate, steps = arguments.get("dgc.density_decay_rate", 0.5), arguments.get("dgc.density_decay_steps", 10_000)
        section["density_decay"] = {"initial_density": density, "rate": rate, "every_n": steps}
    return {"training.gradients.compression": section}


def _lolly(arguments: Arguments) -> dict[str, Any]:
    bits, other = arguments.get("input_size_bits"), arguments.get("discretizer.output_size_bits")
    if other is not None and other != (other if bits is None else bits):
        raise ConfigError(
            "ids and bins are hashed into one space", where="--discretizer.output_size_bits", value=other,
            limit=f"--input_size_bits, {bits}", fix="give one of the two",
        )  # fmt: skip
    found = {} if other is None else {"model.lolly_lr.input_size_bits": other}
    label = arguments.get("lolly_score_label")
    if arguments.get("replicate_lolly", False):
        return found | {"model.lolly_lr.replicate_label": label or LOGGED_SCORE}
    if label is not None:
        raise ConfigError("--lolly_score_label without --replicate_lolly", value=label)
    return found


def _set(arguments: Arguments) -> dict[str, Any]:
    found = {}
    for text in arguments.get("set", []):
        path, equals, value = text.partition("=")
        if not (path and equals):
            raise ConfigError("setting cannot be read", where="--set", value=text, limit="section.key=value")
        found[path] = yaml.safe_load(value)
    return found


def _optimizer(arguments: Arguments) -> tuple[str, dict[str, Any]] | None:
    name = arguments.get("optimizer")
    return None if name is None else _one_of("optimizer", name, _OPTIMIZERS)


def _one_of(option: str, value: str, known: dict[str, Any]) -> Any:
    if value.lower() not in known:
        raise ConfigError("unknown value", where=f"--{option}", value=value, limit=", ".join(known))
    return known[value.lower()]


def _learning_rate(arguments: Arguments) -> float | dict[str, Any]:
    rate = arguments.get("learning_rate", DEFAULTS.learning_rate)
    if arguments.decay == NO_DECAY:
        return rate
    if arguments.decay == "piecewise_constant_learning_rate_decay" and "learning_rate" in arguments.values:
        raise ConfigError("--learning_rate has no effect", where=arguments.decay, fix="the values are the rates")
    return _SCHEDULES[arguments.decay](rate, dict(arguments.decay_values or {}))


def _steps(values: dict[str, Any], name: str = "decay_steps") -> int:
    steps = values[name]
    if steps != int(steps):
        raise ConfigError("number of steps is not whole", where=f"--{name}", value=steps)
    return int(steps)


_SCHEDULES: dict[str, Callable[[float, dict[str, Any]], dict[str, Any]]] = {
    "exponential_learning_rate_decay": lambda rate, v: {
        "exponential": {"learning_rate": rate, "decay_rate": v["exponential_decay_rate"], "decay_steps": _steps(v)}
    },
    "polynomial_learning_rate_decay": lambda rate, v: {
        "polynomial": {
            "learning_rate": rate, "final_learning_rate": v["end_learning_rate"], "decay_steps": _steps(v),
            "power": v["polynomial_power"],
        }
    },
    # The original's value holds up to and with its boundary; here the next one begins at it.
    "piecewise_constant_learning_rate_decay": lambda _, v: {
        "piecewise_constant": {
            "boundaries": [step + 1 for step in v["piecewise_constant_boundaries"]],
            "values": list(v["piecewise_constant_values"]),
        }
    },
    "inverse_learning_rate_decay": lambda rate, v: {
        "inverse": {
            "learning_rate": rate, "decay_rate": v["decay_rate"], "decay_steps": _steps(v),
            "min_learning_rate": v["min_learning_rate"],
        }
    },
    "cosine_learning_rate_decay": lambda rate, v: {
        "linear_ramp_to_cosine": {
            "learning_rate": rate, "final_learning_rate": v["alpha"] * rate, "num_ramp_steps": 0,
            "final_num_steps": _steps(v),
        }
    },
    "cosine_restarts_learning_rate_decay": lambda rate, v: {
        "cosine_restarts": {
            "learning_rate": rate, "first_decay_steps": _steps(v, "first_decay_steps"), "t_mul": v["t_mul"],
            "m_mul": v["m_mul"], "alpha": v["alpha"],
        }
    },
}  # fmt: skip
