"""The light ranker on bank marketing against LightGBM: AUC on the same split, and what isotonic calibration does.

    TML_DATA=/path/to/data python benchmarks/bank_marketing.py

Settings were chosen on splits of other seeds (20 to 24), whose test rows were looked at.

bank-marketing/bank-full.csv.gz holds 45,211 phone calls; `y` says whether one ended with a deposit. For each of five
seeds the rows are split anew (60 / 20 / 20 %), projects/light_ranker/configs/bank.yaml is trained in all its phases,
and so is LightGBM, on the same rows and columns, with early stopping on the same validation rows. `duration`, the
seconds of the call, is known only afterwards: it is never an input.

tml's features hold four target encodings: how calls of the training rows ended on the same day, on the same day with
the same job or the same time since the last campaign, and with clients of the same age, job, marital state, education
and balance. They are made of columns that LightGBM sees too, and LightGBM is also trained with these numbers beside
them (`+ rates`). The rows are split by chance, so that a day's calls lie in all parts: of days to come no rates are
known.

Isotonic calibration is fitted on the validation rows. Compared on the test rows, which it has not seen: the expected
calibration error (15 bins of equal width) and the RCE before and after.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.benchmarks.harness import DATA, RESULTS, ROOT, RUNS, circumstances, markdown_table, write_record
from tml.benchmarks.lightgbm_baseline.baseline import Columns, run_lightgbm, set_up_lightgbm
from tml.benchmarks.ranker_runs import (
    add_seed_options,
    auc,
    calibration_error,
    mean_and_deviation,
    predict,
    prepare,
    rce,
    seeds_of,
    train_all,
)
from tml.benchmarks.runs import real_data

CONFIG = ROOT / "projects" / "light_ranker" / "configs" / "bank.yaml"
FEATURES = CONFIG.parent / "features" / CONFIG.name
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
NUMBERS = ("age", "balance", "day", "year_day", "campaign", "pdays", "previous")
CATEGORIES = ("job", "marital", "education", "default", "housing", "loan", "contact", "month", "poutcome")
SHARES = {"train": 0.6, "valid": 0.2, "test": 0.2}
LARGEST_LOSS = 0.005


def main() -> None:
    arguments = _parse_arguments()
    record: dict[str, Any] = {"circumstances": circumstances(), "overrides": arguments.set}
    table = read_calls(real_data("bank-marketing") / "bank-full.csv.gz")
    python = set_up_lightgbm()
    rows = [_seed(table, seed, python, arguments.set) for seed in seeds_of(arguments)]
    record["rounds"] = rows
    write_record(arguments.results, "bank_marketing", record, report(rows))


def read_calls(path: Path) -> pa.Table:
    """The calls: numbers as integers, all else as text; `year_day`, the place of the date in a year of months of 31
    days; and the label once more as `click`, 0 or 1."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        calls = list(csv.DictReader(file))
    whole = {*NUMBERS, "duration"}
    columns = {name: [int(call[name]) if name in whole else call[name] for call in calls] for name in calls[0]}
    columns["year_day"] = [31 * MONTHS.index(call["month"]) + int(call["day"]) for call in calls]
    return pa.table(columns | {"click": [int(call["y"] == "yes") for call in calls]})


def write_split(table: pa.Table, seed: int, folder: Path) -> Path:
    """The rows in an order drawn by the seed, cut by `SHARES` into `{train,valid,test}.parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    order, start = np.random.default_rng(seed).permutation(table.num_rows), 0
    for split, share in SHARES.items():
        stop = table.num_rows if split == "test" else start + round(table.num_rows * share)
        pq.write_table(table.take(order[start:stop]), folder / f"{split}.parquet")
        start = stop
    return folder


def _seed(table: pa.Table, seed: int, python: Path | None, overrides: list[str]) -> dict[str, Any]:
    folder = write_split(table, seed, DATA / f"bank-{seed}")
    splits = [argument for split in SHARES for argument in (f"--{split}", folder / f"{split}.parquet")]
    data = prepare(FEATURES, splits, DATA / f"bank-{seed}-encoded")
    places = [f"{section}_data.data_root={data / split}" for section, split in _SECTIONS.items()]
    settings = [f"features_dir={data}", *places, f"runtime.seed={seed}", *overrides]
    found = predict(train_all(CONFIG, f"bank_marketing/{seed}", settings), data / "test")
    assert found.calibrated is not None
    theirs = with_rates = None
    if python is not None:
        theirs = _lightgbm_auc(python, folder, NUMBERS, seed)
        with_rates = _lightgbm_auc(python, *_with_rates(folder, data), seed)
    ours = auc(found.click, found.probability)
    return {
        "seed": seed,
        "tml AUC": ours,
        "LightGBM AUC": theirs,
        "LightGBM + rates AUC": with_rates,
        "difference": None if theirs is None else ours - theirs,
        "ECE": calibration_error(found.click, found.probability),
        "ECE calibrated": calibration_error(found.click, found.calibrated),
        "RCE": rce(found.click, found.probability),
        "RCE calibrated": rce(found.click, found.calibrated),
    }


def _lightgbm_auc(python: Path, folder: Path, numbers: tuple[str, ...], seed: int) -> float:
    out = RUNS / "bank_marketing" / f"lightgbm-{folder.name}"
    found = run_lightgbm(python, folder, Columns(numbers, CATEGORIES, watch_time=None), [seed], out)[seed]
    return auc(found.click, found.probability)


def _with_rates(folder: Path, encoded: Path) -> tuple[Path, tuple[str, ...]]:
    """A folder of the same rows with the numbers of tml's target encodings beside them, and LightGBM's numbers then."""
    out, rates = folder.with_name(f"{folder.name}-rates"), []
    out.mkdir(exist_ok=True)
    for split in SHARES:
        rows = pq.read_table(folder / f"{split}.parquet")
        # One file of the split has been encoded, row by row.
        [path] = (encoded / split).glob("*.parquet")
        numbers = pq.read_table(path)
        rates = [name for name in numbers.column_names if name.startswith("v.")]
        assert (rows["click"].to_numpy() == numbers["y.y"].to_numpy()).all()
        for name in rates:
            rows = rows.append_column(name, numbers[name])
        pq.write_table(rows, out / f"{split}.parquet")
    return out, (*NUMBERS, *rates)


_SECTIONS = {"train": "train", "validation": "valid", "test": "test"}


def report(rows: list[dict[str, Any]]) -> str:
    """The rounds and what follows from them, in Markdown."""
    found = {name: [row[name] for row in rows] for name in rows[0] if rows[0][name] is not None}
    shown = {name: mean_and_deviation(found[name], 2 if name.startswith("RCE") else 4) for name in found}
    text = f"20 % of 45,211 calls are test rows, split anew for each seed.\n\n{markdown_table(rows)}\n\n"
    if "difference" in found:
        verdict = "within" if statistics.fmean(found["difference"]) >= -LARGEST_LOSS else "NOT within"
        text += f"AUC, tml minus LightGBM: {shown['difference']}, {verdict} {LARGEST_LOSS} of LightGBM's; "
        text += f"LightGBM with the rates: {shown['LightGBM + rates AUC']}. "
    else:
        text += "LightGBM was left out: it could not be installed. "
    return text + (
        f"Isotonic calibration: expected calibration error {shown['ECE']} before, {shown['ECE calibrated']} after; "
        f"RCE {shown['RCE']} before, {shown['RCE calibrated']} after. Means ± standard deviations over seeds."
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seed_options(parser, "splits, and trainings of each model")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting of tml's config"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
