"""No setting without effect: every field of a run's config is read by the code, and by a run."""

from __future__ import annotations

import ast
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pydantic
import pytest

from tests.projects.twhin.tiny import TinyGraph, config_of, run, tables, tiny_settings, write_graph
from tests.runs import merged
from tml.core.config.base_config import BaseConfig
from tml.core.config.runtime import LogConfig, RuntimeConfig, TrackingConfig
from tml.core.config.training import EarlyStoppingConfig, ProfileConfig, TrainingConfig
from tml.core.optimizers.config import OptimizerConfig
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.records.table_config import RecordTableConfig
from tml.projects.twhin import config as twhin

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "core", "machines", "ml_logging", "projects")

# Sections that trackers take whole, field by field, as keyword arguments.
HANDED_ON_WHOLE = {"WandbConfig", "MlflowConfig"}


def _sections(section: type[BaseConfig]) -> Iterator[type[BaseConfig]]:
    """A section and all that lie in it."""
    yield section
    for field in section.model_fields.values():
        for inner in _models_in(field.annotation):
            yield from _sections(inner)


def _models_in(annotation: object) -> Iterator[type[BaseConfig]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseConfig):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


# By module too: the projects have sections of the same name.
ALL_SECTIONS = {
    f"{section.__module__.removeprefix('tml.')}.{section.__name__}": section
    for config in (twhin.TwhinConfig, LightRankerConfig, FeatureConfig, RecordTableConfig)
    for section in _sections(config)
}


def _names_read() -> set[str]:
    """Attributes and getattr names in the code, apart from validators, which only refuse."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found |= _reads(ast.parse(path.read_text(encoding="utf-8")))
    return found


def _reads(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and any("validator" in ast.dump(d) for d in node.decorator_list):
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
        found |= _reads(node)
    return found


def test_the_walk_finds_sections_of_every_depth():
    names = {name.rpartition(".")[2] for name in ALL_SECTIONS}
    assert {"TwhinConfig", "TableConfig", "OptimizerConfig", "CosineRestartsConfig", "MlflowConfig"} <= names
    assert {"LightRankerConfig", "InteractionConfig", "FeatureConfig"} <= names


def test_every_field_is_read_outside_its_definition():
    read = _names_read()
    one_of = {name for section in ALL_SECTIONS.values() for group in section.one_of for name in group}
    unread = [
        f"{name}.{field}"
        for name, section in ALL_SECTIONS.items()
        for field in section.model_fields
        # A choice among alternatives is read through its group.
        if field not in read | one_of and section.__name__ not in HANDED_ON_WHOLE
    ]
    assert not unread


def test_a_field_that_nothing_reads_would_be_found():
    assert not _reads(
        ast.parse("class A:\n    size: int\n    @model_validator(mode='after')\n    def f(self): self.size")
    )
    assert _reads(ast.parse("config.size; getattr(config, 'limit')")) == {"size", "limit"}


def test_every_field_has_a_description():
    without = [
        f"{name}.{field}"
        for name, section in ALL_SECTIONS.items()
        for field, info in section.model_fields.items()
        if not info.description
    ]
    assert not without


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> TinyGraph:
    return write_graph(tmp_path_factory.mktemp("graph"))


def test_a_run_reads_every_field(graph, tmp_path):
    """The fields that runs read: of a plain one, one with early stopping, and of those that follow and evaluate."""
    settings = tiny_settings(
        graph,
        tmp_path / "run",
        training={
            "evaluate_every_n": 4, "early_stopping": {"metric": "filtered.mrr"},
            "profile_steps": {"start": 1, "count": 1},
            "eval_timeout_in_s": 5.0, "eval_poll_every_s": 0.01,
        },
        model={"regularization": {"kind": "l2", "weight": 1e-4}, "loss": "ranking"},
        validation_data={"data_root": graph.valid},
        test_data={"data_root": graph.test},
    )  # fmt: skip
    settings["model"]["embeddings"]["tables"] = tables(settings, data_type="fp16")
    other = {
        "training": {"save_dir": str(tmp_path / "other")},
        "model": {"translation_optimizer": {"adagrad": None, "adam": {"learning_rate": 0.1}}},
        "train_data": {"global_batch_size": None, "per_replica_batch_size": 400},
    }
    read: set[tuple[str, str]] = set()

    def recording(section: BaseConfig, name: str) -> object:
        if name in type(section).model_fields:
            read.update((owner.__name__, name) for owner in type(section).__mro__ if _has(owner, name))
        return object.__getattribute__(section, name)

    runs = [(settings, task) for task in ("train", "train", "evaluate", "only_evaluate")]
    for changed, task in [*runs, (merged(settings, other), "train")]:
        config = config_of(changed)
        with (
            mock.patch.object(BaseConfig, "__getattribute__", recording),
            mock.patch("tests.projects.twhin.tiny.config_of", lambda _, config=config: config),
        ):
            assert run(changed, task) == 0
    watched = [
        twhin.TableConfig, twhin.EmbeddingsConfig, twhin.RelationConfig, twhin.RegularizationConfig, twhin.ModelConfig,
        twhin.EdgesConfig, twhin.TrainDataConfig, twhin.EvaluationConfig, twhin.TwhinConfig, OptimizerConfig,
        TrainingConfig, EarlyStoppingConfig, ProfileConfig, RuntimeConfig, LogConfig, TrackingConfig,
    ]  # fmt: skip
    unread = [
        f"{section.__name__}.{field}"
        for section in watched
        for field in section.model_fields
        if (section.__name__, field) not in read
    ]
    assert not unread


def _has(owner: type, name: str) -> bool:
    return issubclass(owner, pydantic.BaseModel) and name in owner.model_fields
