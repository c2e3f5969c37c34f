"""The light ranker on KuaiRand's short videos, split by time, against popularity and LightGBM, and what TwHIN adds.

    TML_DATA=/path/to/data python benchmarks/kuairand.py

kuairand27k-likehate-kcore15 holds 41,828 impressions of 8 to 21 April 2022. Training is 8 to 16 April, early stopping
and isotonic calibration 17 April, the test 18 to 21 April; nothing in a row comes after its impression
(kuairand_rows.py). The rows were filtered at the source (65.7 % of them are clicks, and a video that is shown often is
one that was liked), so figures are of this table, not of an app.

    popularity           click rate and mean log watch time of the video on earlier days, smoothed towards the mean
    LightGBM             the same 12 numbers as tml; early stopping on the same rows
    LightGBM, ids        and user and video as categories
    tml                  projects/light_ranker/configs/kuairand.yaml
    ... + TwHIN vectors  and the TwHIN embeddings of user and video, frozen
    ... + TwHIN scores   and TwHIN's scores of (user, click | long_view, video) instead

TwHIN is trained on user -> click | long_view | follow | comment | forward -> video of 8 to 12 April alone. Rows of
those days have no embedding, since it has seen their answers; all later ones have that of 12 April.

AUC, RCE and ECE (expected calibration error) are of the uncalibrated probabilities, all by one evaluator on the same
test rows: RCE is against a model that knows the test's click rate. Errors of the watch time: mean squared error of
log(1 + seconds), mean absolute error in seconds. Means and standard deviations over seeds; popularity has none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from tml.benchmarks.harness import DATA, RESULTS, ROOT, RUNS, circumstances, markdown_table, write_record
from tml.benchmarks.kuairand_rows import (
    NUMBERS,
    RELATIONS,
    SCORES,
    SPLITS,
    read_impressions,
    with_embeddings,
    write_edges,
    write_splits,
)
from tml.benchmarks.lightgbm_baseline.baseline import Columns, run_lightgbm, set_up_lightgbm
from tml.benchmarks.processes import run_measured
from tml.benchmarks.ranker_runs import (
    Predicted,
    add_seed_options,
    click_scores,
    mean_and_deviation,
    predict,
    prepare,
    rce,
    seeds_of,
    train_all,
    watch_scores,
    write_yaml,
)
from tml.benchmarks.runs import convert, real_data, train

CONFIG = ROOT / "projects" / "light_ranker" / "configs" / "kuairand.yaml"
FEATURES = CONFIG.parent / "features" / CONFIG.name
WORK = DATA / "kuairand"
SMOOTHING = 10.0  # impressions that a video's rate is pulled towards the mean with
TWHIN_DIM, TWHIN_EPOCHS = 16, 20
_SECTIONS = {"train": "train", "validation": "valid", "test": "test"}


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Attributes:
        name: of the model.
        numbers: columns beside `NUMBERS`.
        vectors: with TwHIN's embeddings.
        categories: ids that LightGBM sees.
    """

    name: str
    numbers: tuple[str, ...] = ()
    vectors: bool = False
    categories: tuple[str, ...] = field(default=())


RANKERS = (
    Model("tml"),
    Model("tml + TwHIN vectors", vectors=True),
    Model("tml + TwHIN scores", SCORES),
)
TREES = (
    Model("LightGBM"),
    Model("LightGBM, ids", categories=("user_id", "video_id")),
    Model("LightGBM + TwHIN scores", SCORES),
)


def main() -> None:
    arguments = _parse_arguments()
    record: dict[str, Any] = {"circumstances": circumstances(), "overrides": arguments.set}
    source = real_data("kuairand27k-likehate-kcore15")
    export, twhin = trained_twhin(source)
    rows = with_embeddings(read_impressions(source), export)
    data, seeds = write_splits(rows, WORK / "rows"), seeds_of(arguments)
    found = {"popularity": [popularity(rows)]}
    python = set_up_lightgbm()
    for model in TREES if python is not None else ():
        columns = Columns((*NUMBERS, *model.numbers), model.categories)
        out = RUNS / "kuairand" / model.name.replace(" ", "_")
        found[model.name] = list(run_lightgbm(python, data, columns, seeds, out).values())
    for model in RANKERS:
        found[model.name] = _trained(model, data, export, seeds, arguments.set)
    scores = {name: [_scores(predicted) for predicted in several] for name, several in found.items()}
    record |= {"twhin": twhin, "scores": scores, "rows": {split: len(_rows_of(rows, split)) for split in SPLITS}}
    write_record(arguments.results, "kuairand", record, report(scores, record))


def popularity(rows: pa.Table) -> Predicted:
    """Each test row by its video's earlier days alone."""
    training, test = _rows_of(rows, "train"), _rows_of(rows, "test")
    seen = test["video_seen"].to_numpy()
    click_rate = training["click"].to_numpy().mean()
    log_seconds = np.log1p(training["watch_time"].to_numpy()).mean()
    return Predicted(
        _smoothed(seen, test["video_click_rate"].to_numpy(), click_rate),
        test["click"].to_numpy().astype(np.float64),
        _smoothed(seen, test["video_watch"].to_numpy(), log_seconds),
        test["watch_time"].to_numpy(),
    )


def _smoothed(seen: np.ndarray, mean: np.ndarray, prior: float) -> np.ndarray:
    return (seen * np.nan_to_num(mean) + SMOOTHING * prior) / (seen + SMOOTHING)


def trained_twhin(source: Path) -> tuple[Path, dict[str, float]]:
    """`tml convert`, train and `tml twhin export` of the first days' engagements: the export, and its test metrics."""
    WORK.mkdir(parents=True, exist_ok=True)
    graph, export = WORK / "graph", WORK / "twhin"
    relations = [part for name in RELATIONS for part in ("--relation", f"{name}=user:video")]
    convert([write_edges(source, WORK / "edges.parquet"), *relations, "--seed", "0"], graph, again=True)
    config = yaml.safe_load((graph / "config.yaml").read_text(encoding="utf-8"))
    config["training"] |= {"num_epochs": TWHIN_EPOCHS, "checkpoint_every_n": None}
    for table in config["model"]["embeddings"]["tables"]:
        table["embedding_dim"] = TWHIN_DIM
    config["train_data"] |= {"global_batch_size": 1_000, "global_negatives": 200}
    run = train(write_yaml(WORK / "twhin.yaml", config), "kuairand/twhin")
    command = [sys.executable, "-m", "tml.projects.cli", "twhin", "export", str(run.save_dir), "--out", str(export)]
    run_measured([*command, "--overwrite"], WORK / "twhin-export.log")
    return export, run.metrics()


def features_of(model: Model, export: Path) -> dict[str, Any]:
    """The feature config of a ranker: that of the house, and what TwHIN adds."""
    features = yaml.safe_load(FEATURES.read_text(encoding="utf-8"))
    for name, side in (("user", "user"), ("video", "candidate")) if model.vectors else ():
        table = {"folder": str(export), "table": name}
        features["features"].append(
            {"name": f"twhin_{name}", "kind": "categorical", "side": side, "pretrained": table}
        )  # fmt: skip
    for name in model.numbers:
        features["features"].append({"name": name, "kind": "continuous", "side": "candidate", "transform": "z_score"})
    return features


def _trained(model: Model, data: Path, export: Path, seeds: Sequence[int], overrides: list[str]) -> list[Predicted]:
    name = model.name.replace(" ", "_")
    splits = [argument for split in SPLITS for argument in (f"--{split}", data / f"{split}.parquet")]
    encoded = prepare(features_of(model, export), splits, WORK / f"encoded-{name}")
    places = [f"{section}_data.data_root={encoded / split}" for section, split in _SECTIONS.items()]
    found = []
    for seed in seeds:
        settings = [f"features_dir={encoded}", *places, f"runtime.seed={seed}", *overrides]
        found.append(predict(train_all(CONFIG, f"kuairand/{name}-{seed}", settings), encoded / "test"))
        print(f"{model.name}, seed {seed}: {_scores(found[-1])}", flush=True)
    return found


def _scores(predicted: Predicted) -> dict[str, float | None]:
    scores = click_scores(predicted, calibrated=False) | watch_scores(predicted)
    if predicted.calibrated is not None:
        scores["RCE calibrated"] = rce(predicted.click, predicted.calibrated)
    return scores


def _rows_of(rows: pa.Table, split: str) -> pa.Table:
    days = rows["date"].to_numpy()
    first, last = SPLITS[split]
    return rows.filter((days >= first) & (days <= last))


def report(scores: dict[str, list[dict[str, float | None]]], record: dict[str, Any]) -> str:
    """The table, and TwHIN's lift, in Markdown."""
    names = ("AUC", "RCE", "RCE calibrated", "ECE", "log1p MSE", "MAE s")
    rows = []
    for model, runs in scores.items():
        found = {name: [run[name] for run in runs] for name in names if runs[0].get(name) is not None}
        digits = {name: 3 if name == "MAE s" else 2 if name.startswith("RCE") else 4 for name in names}
        shown = {name: mean_and_deviation(found[name], digits[name]) if name in found else "-" for name in names}
        rows.append({"model": model, "seeds": len(runs)} | shown)
    counts = ", ".join(f"{count:,} {split}" for split, count in record["rows"].items())
    lifts = []
    for model in RANKERS[1:]:
        pairs = list(zip(scores[model.name], scores["tml"], strict=True))
        differences = {name: [mine[name] - base[name] for mine, base in pairs] for name in ("AUC", "RCE")}
        lifts.append(
            f"{model.name} minus tml, seed by seed: AUC {mean_and_deviation(differences['AUC'], 4)}, "
            f"RCE {mean_and_deviation(differences['RCE'], 2)}."
        )
    left_out = "" if "LightGBM" in scores else "\n\nLightGBM was left out: it could not be installed."
    return (
        f"{counts} rows, split by time; means ± standard deviations over seeds.\n\n{markdown_table(rows)}\n\n"
        + "\n".join(lifts)
        + left_out
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seed_options(parser, "trainings of each model")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting of tml's config"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
