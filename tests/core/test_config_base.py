import enum
from pathlib import Path
from typing import ClassVar, Literal

import pydantic
import pytest

from tml.common.errors import ConfigError
from tml.core.config import BaseConfig, parse_config


class Comparator(enum.Enum):
    DOT = "dot"
    COSINE = "cosine"


class Table(BaseConfig):
    name: str = pydantic.Field(min_length=1)
    num_embeddings: int = pydantic.Field(gt=0)
    learning_rate: float = pydantic.Field(0.1, gt=0, le=100)
    trainable: bool = True
    comparator: Comparator = Comparator.DOT
    kind: Literal["fp32", "fp16"] = "fp32"


class Data(BaseConfig):
    one_of: ClassVar = (("files", "folder"),)
    at_most_one_of: ClassVar = (("limit", "fraction"),)
    files: tuple[Path, ...] | None = None
    folder: Path | None = None
    limit: int | None = None
    fraction: float | None = None
    weights: dict[str, float] = pydantic.Field(default_factory=dict)
    tables: tuple[Table, ...] = ()


def _messages(error: pydantic.ValidationError) -> list[str]:
    return [f"{'.'.join(map(str, line['loc']))}: {line['msg']}" for line in error.errors()]


def _faults(**values: object) -> list[str]:
    with pytest.raises(pydantic.ValidationError) as caught:
        Data(**values)
    return _messages(caught.value)


def test_values_are_parsed_into_their_types_and_frozen():
    data = Data(files=["a", "b"], tables=[{"name": "user", "num_embeddings": 1e6, "comparator": "cosine"}])
    assert data.files == (Path("a"), Path("b"))
    assert data.tables[0].num_embeddings == 1_000_000
    assert isinstance(data.tables[0].num_embeddings, int)
    assert data.tables[0].comparator is Comparator.COSINE
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        data.limit = 3


def test_unknown_key_is_refused_with_did_you_mean_at_its_own_path():
    faults = _faults(folder="x", tables=[{"name": "user", "num_embedings": 3, "num_embeddings": 3}])
    assert faults == ["tables.0.num_embedings: unknown key; did you mean 'num_embeddings'?"]


def test_unknown_key_without_a_near_one_lists_the_known_ones():
    (fault,) = _faults(folder="x", zzz=1)
    assert fault == "zzz: unknown key; known: files, folder, fraction, limit, tables, weights"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "exactly one of 'files', 'folder' must be set, not none of them"),
        ({"files": ["a"], "folder": "b"}, "exactly one of 'files', 'folder' must be set, not 'files', 'folder'"),
        ({"folder": "b", "limit": 1, "fraction": 0.5}, "at most one of 'limit', 'fraction' may be set"),
    ],
)
def test_groups_of_alternatives(values, said):
    (fault,) = _faults(**values)
    assert said in fault


def test_a_value_of_zero_counts_as_set():
    assert len(_faults(folder="b", limit=0, fraction=0.0)) == 1
    assert Data(folder="b", limit=0).limit == 0


def test_group_faults_are_reported_together_with_field_faults():
    faults = _faults(limit="many", fraction=0.1)
    assert len(faults) == 3
    assert any(fault.startswith("limit: an integer is expected") for fault in faults)
    assert any("exactly one of" in fault for fault in faults)
    assert any("at most one of" in fault for fault in faults)


def test_a_group_that_names_no_field_is_a_programming_error():
    with pytest.raises(TypeError, match="flies"):

        class Wrong(BaseConfig):
            one_of: ClassVar = (("flies",),)
            files: str | None = None


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_embeddings", "3", "an integer is expected, not the text '3'"),
        ("num_embeddings", True, "an integer is expected, not true"),
        ("num_embeddings", 1.5, "valid integer"),
        ("num_embeddings", None, "an integer is expected, not null"),
        ("learning_rate", "1e-3", "a number is expected, not the text '1e-3'"),
        ("trainable", "yes", "true or false is expected, not the text 'yes', write it out"),
        ("trainable", 1, "true or false is expected, not 1"),
        ("name", 7, "valid string"),
        ("kind", "fp8", "'fp32' or 'fp16'"),
        ("comparator", "l2", "'dot' or 'cosine'"),
    ],
)
def test_wrong_kind_is_refused_instead_of_converted(field, value, said):
    (fault,) = _faults(folder="x", tables=[{"name": "user", "num_embeddings": 3} | {field: value}])
    assert fault.startswith(f"tables.0.{field}: ")
    assert said in fault


def test_wrong_kind_inside_a_container_names_the_element():
    (fault,) = _faults(folder="x", weights={"fav": 1, "reply": "2"})
    assert fault == "weights: element 'reply': a number is expected, not the text '2'"


@pytest.mark.parametrize("learning_rate", [0, -1, 101, float("inf"), float("nan")])
def test_27_absurd_learning_rate_is_refused_with_the_range(learning_rate):
    (fault,) = _faults(folder="x", tables=[{"name": "user", "num_embeddings": 3, "learning_rate": learning_rate}])
    assert "greater than 0" in fault or "less than or equal to 100" in fault


def test_defaults_are_validated_too():
    class Wrong(BaseConfig):
        margin: float = pydantic.Field(-1.0, ge=0)

    with pytest.raises(pydantic.ValidationError, match="greater than or equal to 0"):
        Wrong()


def test_messages_of_own_validators_survive_with_braces():
    class Even(BaseConfig):
        size: int = 2
        other: int = 0

        @pydantic.field_validator("size")
        @classmethod
        def _even(cls, size: int) -> int:
            if size % 2:
                raise ValueError(f"must be even {{not {size}}}")
            return size

    class Outer(BaseConfig):
        even: Even = Even()

    with pytest.raises(pydantic.ValidationError) as caught:
        Outer(even={"size": 3, "othr": 1})
    assert _messages(caught.value) == [
        "even.size: Value error, must be even {not 3}",
        "even.othr: unknown key; did you mean 'other'?",
    ]


class Sgd(BaseConfig):
    kind: Literal["sgd"] = "sgd"
    momentum: float = 0.0


class Adam(BaseConfig):
    kind: Literal["adam"] = "adam"
    eps: float = 1e-8


class Choices(BaseConfig):
    optimizer: Sgd | Adam = pydantic.Field(Sgd(), discriminator="kind")
    num_chunks: Literal["auto"] | int | None = "auto"


def test_unions_by_discriminator_and_of_kinds_work():
    choices = Choices(optimizer={"kind": "adam", "eps": 1}, num_chunks=3)
    assert choices.optimizer == Adam(eps=1.0)
    assert Choices(num_chunks=None).num_chunks is None
    assert Choices(num_chunks="auto") == Choices()
    assert hash(Choices()) == hash(Choices(num_chunks="auto"))


def test_faults_inside_a_union_are_refused_and_named_by_their_real_path():
    with pytest.raises(ConfigError, match=r"optimizer\.epps: unknown key\n.*\n  fix: did you mean 'eps'"):
        parse_config(Choices, {"optimizer": {"kind": "adam", "epps": 1}})
    with pytest.raises(ConfigError, match=r"num_chunks: 'auto' is expected, not the text '5'"):
        parse_config(Choices, {"num_chunks": "5"})
