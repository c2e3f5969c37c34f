"""The proposal for features.yaml, and the three commands from table to prepared rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests.projects.light_ranker.features.prepare_helpers import rows, run, write_table
from tml.common.errors import ConfigError, DataError
from tml.core.config.loading import parse_config
from tml.projects.light_ranker.data.sample_clicks import ClickParameters, sample_clicks
from tml.projects.light_ranker.features.cli import inspect_command, prepare_command, sample_clicks_command
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.inspect import propose


def proposal(path: str | Path, group: str | None = None) -> tuple[dict[str, dict[str, Any]], dict[str, Any], str]:
    """Features by name, the other sections, and the text."""
    text = propose([str(path)], group)
    values = yaml.safe_load(text)
    return {feature["name"]: feature for feature in values.pop("features") or []}, values, text


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clicks") / "out"
    sample_clicks(ClickParameters(8_000), out)
    return out


def test_sample_clicks_are_understood(clicks: Path):
    features, others, _ = proposal(clicks / "train", "request_id")
    assert {name: (f["kind"], f["side"]) for name, f in features.items()} == {
        "user_id": ("categorical", "user"),
        "country": ("categorical", "user"),
        "age": ("continuous", "user"),
        "interests": ("ids", "user"),
        "item_id": ("categorical", "candidate"),
        "author": ("categorical", "candidate"),
        "topics": ("ids", "candidate"),
        "item_age_hours": ("continuous", "candidate"),
        "quality": ("continuous", "candidate"),
        "style": ("vector", "candidate"),
    }
    assert others["labels"] == [{"name": "click", "kind": "binary"}, {"name": "watch_time", "kind": "nonnegative"}]
    assert others["group"] == "request_id"
    assert features["style"]["dim"] == 8


def test_a_column_named_as_the_request_tells_the_sides_without_being_asked_for(clicks: Path):
    features, others, text = proposal(clicks / "train")
    assert features == proposal(clicks / "train", "request_id")[0]
    assert "group" not in others
    assert "# Sides: constant within request_id, which by its name is the request" in text


@pytest.mark.parametrize(
    ("columns", "sides"),
    [
        ({"request_id": np.arange(200), "Session ID": np.arange(200) // 20}, "constant within Session ID, "),
        ({"session": np.arange(200) // 20, "queryId": np.arange(200) // 4}, "constant within queryId, "),
        ({"request_id": np.arange(200)}, "guessed by names"),
        ({"request_id": np.arange(200) // 100}, "guessed by names"),
        ({"request_id": [i // 2 if i < 60 else None for i in range(200)]}, "guessed by names"),
    ],
)
def test_the_finest_request_with_several_rows_tells_the_sides(tmp_path: Path, columns: dict[str, Any], sides: str):
    path = write_table(tmp_path / "t.parquet", **columns, age=np.arange(200) // 20 % 7, click=np.arange(200) % 2)
    features, _, text = proposal(path)
    assert f"# Sides: {sides}" in text
    assert features["age"]["side"] == ("candidate" if "guessed" in sides else "user")


def test_a_proposal_prepares_as_it_is(clicks: Path, tmp_path: Path):
    config = yaml.safe_load(propose([str(clicks / "train")], "request_id"))
    run(tmp_path, config, str(clicks / "train"), str(clicks / "valid"))
    assert len(rows(tmp_path, "valid")["w"]) == 800


def test_text_files_are_understood_without_types(tmp_path: Path):
    sample_clicks(ClickParameters(4_000), tmp_path / "csv", "csv")
    features, others, _ = proposal(tmp_path / "csv/train", "request_id")
    assert (features["topics"]["kind"], features["topics"]["separator"]) == ("ids", "|")
    assert (features["quality"]["kind"], features["user_id"]["kind"]) == ("continuous", "categorical")
    assert others["labels"][0] == {"name": "click", "kind": "binary"}


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("item_id", ["17", "4", "17", "0", "-3"], {"kind": "categorical", "type": "int"}),
        ("zip_code", ["01067", "1067", "80331", "2", "3"], {"kind": "categorical"}),
        ("item_id", ["1.0", "2.0", "1.0", "2.0", "1.0"], {"kind": "categorical"}),
        ("item_id", ["a", "4", "a", "0", "3"], {"kind": "categorical"}),
        ("tags", ["1|2", "2|1", "1", "2|2|1", "1|1"], {"kind": "ids", "type": "int", "separator": "|"}),
        ("tags", ["01|2", "2|1", "1", "2|2|1", "1|1"], {"kind": "ids", "separator": "|"}),
    ],
)
def test_whole_numbers_of_a_text_file_are_integer_ids_unless_two_texts_would_become_one(
    tmp_path: Path, name: str, values: list[str], expected: dict[str, str]
):
    lines = [f"{value},{click}" for value, click in zip(values * 4, [0, 1] * 10, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join([f"{name},click", *lines]) + "\n")
    features, _, _ = proposal(tmp_path / "t.csv")
    found = {key: features[name][key] for key in ("kind", "type", "separator") if key in features[name]}
    assert found == expected


def test_integer_ids_of_a_text_file_are_those_of_a_typed_table(tmp_path: Path):
    ids, clicks = [5, 9, 5, 1_000_000_007] * 5, [0, 1] * 10
    (tmp_path / "t.csv").write_text("item_id,click\n" + "".join(f"{i},{c}\n" for i, c in zip(ids, clicks, strict=True)))
    write_table(tmp_path / "t.parquet", item_id=np.array(ids), click=np.array(clicks))
    for suffix in ("csv", "parquet"):
        folder = tmp_path / suffix
        folder.mkdir()
        path = str(tmp_path / f"t.{suffix}")
        run(folder, yaml.safe_load(propose([path])), path)
    of_csv, of_parquet = rows(tmp_path / "csv", "train"), rows(tmp_path / "parquet", "train")
    assert of_csv.keys() == of_parquet.keys()
    for column in of_csv:
        np.testing.assert_array_equal(of_csv[column], of_parquet[column])


N = 400
RNG = np.random.default_rng(0)
CLICKED = RNG.integers(0, 2, N)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("is_like", CLICKED * RNG.integers(0, 2, N), "only after the event"),
        ("duration", RNG.integers(0, 100, N), "only after the event"),
        ("label", CLICKED, "only after the event"),
        ("bonus", CLICKED * RNG.random(N), "only after the event"),
        ("Request ID", RNG.integers(0, 40, N), "names a request"),
        ("requestId", RNG.integers(0, 40, N), "names a request"),
        ("Event Time", RNG.integers(0, 40, N), "a time"),
        ("shown", [f"2026-01-{i % 28 + 1:02} 00:0{i % 7}:10" for i in range(N)], "a time"),
        ("shown", [f"2026-01-{i % 28 + 1:02}T00:0{i % 7}:10Z" for i in range(N)], "a time"),
        ("time_ms", 1_700_000_000_000 + np.arange(N), "a time"),
        ("when", 1_700_000_000 + np.arange(N), "a time"),
        ("row", [f"r{i}" for i in range(N)], "names the row"),
        ("request_id", RNG.integers(0, 40, N), "names a request"),
        ("version", [3] * N, "one value only"),
        ("nothing", pa.nulls(N, pa.string()), "no values"),
        ("raw", [b"\x00"] * (N - 1) + [b"\x01"], "a type that is no feature"),
    ],
)
def test_columns_that_had_better_be_left_out_are_commented_with_the_reason(tmp_path: Path, name, values, reason):
    path = write_table(tmp_path / "t.parquet", user_id=RNG.integers(0, 9, N), is_click=CLICKED, **{name: values})
    features, others, text = proposal(path)
    assert list(features) == ["user_id"]
    assert others["labels"] == [{"name": "click", "kind": "binary", "column": "is_click"}]
    [line] = [line for line in text.splitlines() if f"name: {name}," in line]
    assert line.lstrip().startswith("#")
    assert reason in line


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("video_id", RNG.integers(0, 10**7, N) * 3, "categorical"),
        ("hour", RNG.integers(0, 20, N), "categorical"),
        ("opaque", RNG.integers(0, 10**6, N // 2).repeat(2), "categorical"),
        ("fans_count", (RNG.pareto(1, N) * 9).astype(int), "continuous"),
        ("age", RNG.integers(13, 90, N), "continuous"),
        ("ctr", RNG.random(N), "continuous"),
        ("flag", RNG.integers(0, 2, N).astype(bool), "categorical"),
        ("with_gaps", [None, 5.0, 9.0, 5.0] * (N // 4), "categorical"),
    ],
)
def test_kinds_are_guessed_by_names_and_values(tmp_path: Path, name, values, kind):
    if name == "video_id":
        values = values[RNG.integers(0, 200, N)]
    path = write_table(tmp_path / "t.parquet", click=CLICKED, **{name: values})
    assert proposal(path)[0][name]["kind"] == kind


ODD = {
    "User.Name": "user",
    "item-id": "candidate",
    "Device Type": "user",
    "type=x/y#z": "candidate",
    "tags": "candidate",
}


def _odd_table(request: np.ndarray, dictionary: bool) -> pa.Table:
    texts = {
        "User.Name": [f"Ünïcode {r % 7}" for r in request],
        "Device Type": [("iOS", "web, mobile", '"quoted"')[r % 3] for r in request],
        "tags": ["|".join(map(str, sorted({i % 5, i % 7, i % 9}))) for i in range(N)],
    }
    arrays = {name: pa.array(values) for name, values in texts.items()}
    if dictionary:
        arrays = {name: array.dictionary_encode() for name, array in arrays.items()}
    numbers = {"item-id": np.arange(N) % 50, "type=x/y#z": np.arange(N) / N, "Watch Time (ms)": CLICKED * 500}
    return pa.table({"a: request": request, **arrays, **numbers, "isClicked": CLICKED})


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_proposal_for_columns_with_odd_names_and_coded_texts_prepares_as_it_is(tmp_path: Path, dictionary: bool):
    pq.write_table(_odd_table(np.arange(N) // 8, dictionary), tmp_path / "t.parquet")
    features, others, _ = proposal(tmp_path / "t.parquet", "a: request")
    features.pop("a: request")
    assert {f.get("column", name): f["side"] for name, f in features.items()} == ODD
    assert {name: f["kind"] for name, f in features.items()} == {
        "User.Name": "categorical", "item-id": "categorical", "Device Type": "categorical", "type=x_y#z": "continuous",
        "tags": "ids",
    }  # fmt: skip
    assert others["labels"] == [
        {"name": "click", "kind": "binary", "column": "isClicked"},
        {"name": "watch_time", "kind": "nonnegative", "column": "Watch Time (ms)", "scale": 0.001},
    ]
    assert others["group"] == "a: request"
    config = yaml.safe_load(propose([str(tmp_path / "t.parquet")], "a: request"))
    run(tmp_path, config, str(tmp_path / "t.parquet"))
    assert rows(tmp_path)["x.type=x_y#z"][:2] == pytest.approx([0, 1 / N])


def test_slashes_in_names_of_columns_become_no_folders(tmp_path: Path):
    path = write_table(tmp_path / "t.parquet", **{"a/b": ["x", "y"] * 4, "click": [0, 1] * 4})
    with pytest.raises(ConfigError, match=r"no slash[\s\S]*'a_b'[\s\S]*`column`"):
        run(tmp_path, {"features": [{"name": "a/b", "kind": "categorical", "side": "user"}]}, path)
    run(tmp_path, {"features": [{"match": "a.*", "kind": "categorical", "side": "user"}]}, path)
    assert (tmp_path / "out/vocab/a_b.parquet").is_file()


def test_labels_of_text_and_milliseconds_are_scaled_and_named(tmp_path: Path):
    words = np.where(CLICKED == 1, "yes", "no")
    path = write_table(tmp_path / "t.parquet", a=RNG.random(N), y=words, play_time_ms=CLICKED * 1500)
    assert proposal(path)[1]["labels"] == [
        {"name": "click", "kind": "binary", "column": "y", "positive": ["yes"]},
        {"name": "watch_time", "kind": "nonnegative", "column": "play_time_ms", "scale": 0.001},
    ]


def test_without_a_click_the_proposal_says_so_and_is_refused(tmp_path: Path):
    _, others, text = proposal(write_table(tmp_path / "t.parquet", a=[0.5, 1.5]))
    assert others["labels"] == []
    assert "no click was found" in text
    with pytest.raises(ConfigError, match="labels"):
        parse_config(FeatureConfig, yaml.safe_load(text))


def test_a_missing_group_and_an_empty_table_are_told(tmp_path: Path):
    path = write_table(tmp_path / "t.parquet", a=[1], request=[2])
    with pytest.raises(DataError, match="did you mean 'request'"):
        propose([path], "requets")
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match="no rows"):
        propose([path])


def test_the_commands_lead_from_nothing_to_prepared_rows(tmp_path: Path):
    app = typer.Typer()
    for name, command in (
        ("sample-clicks", sample_clicks_command),
        ("inspect", inspect_command),
        ("prepare", prepare_command),
    ):
        app.command(name)(command)

    def tml(line: str) -> str:
        result = CliRunner().invoke(app, line.replace("@", str(tmp_path)).split(), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "3,200 rows" in tml("sample-clicks --out @/clicks --rows 4000")
    tml("inspect @/clicks/train --group request_id --out @/f.yaml")
    shown = tml(
        "prepare --features @/f.yaml --train @/clicks/train --split-fractions .8,.1,.1 --split-time time --out @/p"
    )
    assert "train: 2,560 rows; mean click" in shown
    assert "config.yaml" in shown
    with pytest.raises(ConfigError, match="there already"):
        tml("inspect @/clicks/train --out @/f.yaml")
    with pytest.raises(ConfigError, match=r"START\.\.END"):
        tml("prepare --features @/f.yaml --train @/clicks/train --train-dates 2026-01-01 --out @/q")


def test_rates_of_the_id_with_most_values_are_proposed_behind_a_comment_sign(tmp_path: Path):
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(0, most, 4000) for name, most in (("user_id", 100), ("item_id", 50), ("ad_id", 3000))}
    path = write_table(tmp_path / "t.csv", **columns, click=rng.integers(0, 2, 4000))
    text = propose([path])
    [line] = [line for line in text.splitlines() if "target_encoding" in line]
    assert line.startswith("  # - {name: user_id_rate, ")
    text = text.replace("# - {name: user_id_rate", "- {name: user_id_rate")
    config = parse_config(FeatureConfig, yaml.safe_load(text))
    [rate] = config.target_encodings()
    assert (rate.keys, rate.types, rate.side, rate.label) == (["user_id"], ["int"], "user", "click")
