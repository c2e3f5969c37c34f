import os
import subprocess
import sys
from typing import ClassVar

import pydantic
import pytest

from tml.common.errors import ConfigError
from tml.core.config import BaseConfig, load_config, parse_config


class Table(BaseConfig):
    name: str
    num_embeddings: int = pydantic.Field(gt=0)
    comparator: str = "dot"


class Sgd(BaseConfig):
    learning_rate: float = pydantic.Field(gt=0, le=100)


class Adagrad(BaseConfig):
    learning_rate: float = pydantic.Field(gt=0, le=100)
    eps: float = 1e-10


class Training(BaseConfig):
    one_of: ClassVar = (("sgd", "adagrad"),)
    save_dir: str = "runs"
    num_epochs: int = pydantic.Field(1, ge=1)
    amp: bool = False
    sgd: Sgd | None = None
    adagrad: Adagrad | None = None


class Config(BaseConfig):
    training: Training
    tables: tuple[Table, ...] = ()
    files: tuple[str, ...] = ()
    note: str | None = None


GOOD = """\
training:
  num_epochs: 3
  sgd:
    learning_rate: 1e-3
tables:
  - name: user
    num_embeddings: 1_000
  - {name: tweet, num_embeddings: 20}
"""


@pytest.fixture
def load(tmp_path):
    def load(text, overrides=(), **environment):
        path = tmp_path / "local.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(Config, path, overrides, environment=environment)

    return load


@pytest.fixture
def fault(load):
    def fault(text, overrides=(), **environment):
        with pytest.raises(ConfigError) as caught:
            load(text, overrides, **environment)
        return str(caught.value)

    return fault


def test_a_good_file_is_read(load):
    config = load(GOOD)
    assert config.training.num_epochs == 3
    assert config.training.sgd.learning_rate == 0.001
    assert config.tables == (Table(name="user", num_embeddings=1000), Table(name="tweet", num_embeddings=20))


def test_42_typo_in_a_key_names_line_path_and_the_right_key(fault):
    said = fault(GOOD.replace("num_epochs", "num_epoch"))
    assert "local.yaml, line 2" in said
    assert "training.num_epoch: unknown key" in said
    assert "did you mean 'num_epochs'?" in said


def test_42_wrong_type_names_line_path_value_and_what_is_allowed(fault):
    said = fault(GOOD.replace("20}", "many}"))
    assert "tables.1.num_embeddings: an integer is expected" in said
    assert "local.yaml, line 8" in said
    assert "'many'" in said


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", ".001", "0.001", "+1e-3"])
def test_42_1e_minus_3_is_a_number(load, text):
    assert load(GOOD.replace("1e-3", text)).training.sgd.learning_rate == 0.001


def test_42_quoted_1e_minus_3_is_text_and_refused(fault):
    assert "a number is expected, not the text '1e-3'" in fault(GOOD.replace("1e-3", "'1e-3'"))


def test_42_duplicate_key_names_both_lines(fault):
    said = fault(GOOD.replace("  sgd:", "  num_epochs: 4\n  sgd:"))
    assert "key 'num_epochs' is given twice" in said
    assert "local.yaml, line 3, training.num_epochs" in said
    assert "the first is at" in said
    assert "line 2" in said


def test_42_unset_variable_names_variable_path_and_line(fault):
    said = fault(GOOD + "files:\n  - ${DATA}/a\n")
    assert "environment variable 'DATA' is not set" in said
    assert "local.yaml, line 10, files.0" in said
    assert "export DATA" in said


@pytest.mark.parametrize("text", ["yes", "on", "off", "No", "y"])
def test_42_yaml_1_1_booleans_are_refused_not_guessed(fault, text):
    said = fault(GOOD.replace("num_epochs: 3", f"amp: {text}"))
    assert f"true or false is expected, not the text '{text}'" in said
    assert "line 2" in said


@pytest.mark.parametrize("text", ["12:30", "2024-01-01", "no", "007", "0x", "1_0", "on", "1.2.3"])
def test_42_yaml_1_1_traps_stay_text(load, text):
    assert load(GOOD + f"note: {text}\n").note == text


@pytest.mark.parametrize(
    ("text", "value"), [("1e6", 1_000_000), ("0x10", 16), ("0o17", 15), ("1_000_000", 1_000_000), ("+7", 7)]
)
def test_whole_numbers_may_be_written_in_several_ways(load, text, value):
    assert load(GOOD.replace("20}", f"{text}}}")).tables[1].num_embeddings == value


def test_variables_are_replaced_before_types_are_decided(load):
    text = GOOD.replace("num_epochs: 3", "num_epochs: $EPOCHS\n  save_dir: ${ROOT}/$RUN.x")
    config = load(text, EPOCHS="5", ROOT="/data", RUN="one")
    assert config.training.num_epochs == 5
    assert config.training.save_dir == "/data/one.x"


def test_a_variable_cannot_inject_structure(load):
    assert load(GOOD + "note: $EVIL\n", EVIL="a: b\ntables: []").note == "a: b\ntables: []"


def test_quoted_variables_stay_text(fault):
    assert "an integer is expected" in fault(GOOD.replace("num_epochs: 3", 'num_epochs: "$N"'), N="5")


def test_double_dollar_is_a_literal_dollar_and_comments_are_left_alone(load):
    assert load(GOOD + "note: $$HOME costs 5$  # not $UNSET\n").note == "$HOME costs 5$"


def test_a_malformed_variable_is_refused(fault):
    assert "${A:-b} names no variable" in fault(GOOD + "note: ${A:-b}\n")


def test_user_is_known_even_where_the_environment_lacks_it(load):
    assert load(GOOD + "note: runs/$USER\n").note != "runs/$USER"


def test_every_fault_is_reported_at_once_with_its_line(fault):
    said = fault(
        "training:\n  num_epochs: 0\n  adagard: {}\ntables:\n  - num_embeddings: -1\n    comparator: 3\ntable: []\n"
    )
    for expected in (
        "local.yaml, line 2: training.num_epochs = 0: must be greater than or equal to 1",
        "local.yaml, line 3: training.adagard: unknown key; did you mean 'adagrad'?",
        "local.yaml, line 1: training: exactly one of 'sgd', 'adagrad' must be set, not none of them",
        "local.yaml, line 5: tables.0.name: a value is required",
        "local.yaml, line 5: tables.0.num_embeddings = -1: must be greater than 0",
        "local.yaml, line 6: tables.0.comparator = 3: must be a valid string",
        "local.yaml, line 7: table: unknown key; did you mean 'tables'?",
    ):
        assert expected in said
    assert said.startswith("7 faults in the config")


def test_27_absurd_learning_rate_is_refused_with_the_range(fault):
    said = fault(GOOD.replace("1e-3", "1e3"))
    assert "training.sgd.learning_rate: must be less than or equal to 100" in said
    assert "line 4" in said


def test_overrides_reach_sections_lists_and_missing_sections(load):
    overrides = [
        "training.num_epochs=7", "tables.0.name=person", "training.sgd=null", "training.adagrad.learning_rate=1e-2",
        "files=[a, b]", "tables.2={name: topic, num_embeddings: 5}", "note=", "training.num_epochs=8",
    ]  # fmt: skip
    config = load(GOOD, overrides)
    assert config.training == Training(num_epochs=8, adagrad=Adagrad(learning_rate=0.01))
    assert [table.name for table in config.tables] == ["person", "tweet", "topic"]
    assert config.files == ("a", "b")
    assert config.note is None


def test_a_value_with_equals_signs_is_kept_whole(load):
    assert load(GOOD, ["note=a=b"]).note == "a=b"


def test_faults_in_an_override_name_the_override(fault):
    said = fault(GOOD, ["training.num_epoch=7"])
    assert "where: override 'training.num_epoch=7'" in said
    assert "did you mean 'num_epochs'?" in said
    assert "where: override 'tables.1.num_embeddings=x'" in fault(GOOD, ["tables.1.num_embeddings=x"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.num_epochs", "not an override"),
        ("training..x=1", "not an override"),
        ("=1", "not an override"),
        ("tables.5.name=x", "no element '5' in the list 'tables'"),
        ("tables.first.name=x", "no element 'first'"),
        ("training.num_epochs.x=1", "'training.num_epochs' is a value, not a section"),
        ("note=[1", "not valid YAML"),
        ("note=$UNSET", "environment variable 'UNSET' is not set"),
    ],
)
def test_broken_overrides_are_refused(fault, override, said):
    assert said in fault(GOOD, [override])


def test_broken_yaml_names_line_and_column(fault):
    said = fault("training:\n\tnum_epochs: 3\n")
    assert "not valid YAML" in said
    assert "local.yaml, line 2, column 1" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "a config is a mapping of sections"),
        ("", "training: a value is required"),
        ("training: !!python/object:os.system x\n", "YAML tags are not supported"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("training: &x [*x]\n", "inside its own anchor"),
        ("? [a, b]\n: 1\n", "a key must be text"),
        ("<<: 3\n", "merges mappings only"),
    ],
)
def test_unusable_documents_are_explained(fault, text, said):
    assert said in fault(text)


def test_merge_keys_work_and_faults_in_them_keep_their_line(load, fault):
    text = GOOD + "  - &base {name: a, num_embeddings: 3}\n  - <<: *base\n    name: b\n"
    assert load(text).tables[3] == Table(name="b", num_embeddings=3)
    said = fault(text.replace("num_embeddings: 3}", "num_embeddings: -3}"))
    assert "line 9: tables.2.num_embeddings" in said
    assert "line 9: tables.3.num_embeddings" in said


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "local.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"(?s)cannot read the config file.*locl\.yaml.*local\.yaml"):
        load_config(Config, tmp_path / "locl.yaml")


def test_a_file_that_is_not_utf_8_is_explained(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"note: \xff\xfe\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(Config, tmp_path / "x.yaml")


def test_parse_config_explains_by_path_and_leaves_dollars_alone():
    data = {"training": {"sgd": {"learning_rate": 0.1}}, "note": "$X"}
    assert parse_config(Config, data).note == "$X"
    with pytest.raises(ConfigError, match=r"training\.sgd\.learning_rat"):
        parse_config(Config, {"training": {"sgd": {"learning_rat": 0.1, "learning_rate": 0.1}}})


def test_importing_config_does_not_import_torch_or_fsspec():
    code = "import sys, tml.core.config; print([m for m in ('torch', 'fsspec', 'rich') if m in sys.modules])"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == "[]"
