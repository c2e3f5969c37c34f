"""Link prediction on FB15k-237: TwHIN's operators beside published figures.

    TML_DATA=/path/to/data python benchmarks/fb15k237.py [--only complex]

Converts FB15k-237/{train,valid,test}.tsv.gz (14,541 entities, 237 relations), trains every config
projects/twhin/configs/fb15k237_*.yaml and ranks the test edges: filtered, both sides, all entities as candidates, the
realistic rank on ties. Minutes are those of training alone, and of the whole process with its evaluations.

The published figures are those of LibKGE's README (its best hyperparameters for each model); those of
PyTorch-BigGraph 1.0.0 (30 epochs, 50 in-batch + 50 or 500 uniform negatives) are given, not run again here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tml.benchmarks.harness import ROOT, argument_parser, circumstances, markdown_table, write_record
from tml.benchmarks.runs import convert, data_folder, real_data, train

CONFIGS = ROOT / "projects" / "twhin" / "configs"
METRICS = {
    "MRR": "filtered.mrr",
    "Hits@1": "filtered.hits@1",
    "Hits@3": "filtered.hits@3",
    "Hits@10": "filtered.hits@10",
}
REFERENCES = [
    {"model": "LibKGE ComplEx", "MRR": 0.348, "Hits@1": 0.253, "Hits@3": 0.384, "Hits@10": 0.536},
    {"model": "LibKGE TransE", "MRR": 0.313, "Hits@1": 0.221, "Hits@3": 0.347, "Hits@10": 0.497},
    {"model": "PBG translation, 50 + 500", "MRR": 0.265, "Hits@10": 0.459},
    {"model": "PBG complex_diagonal, 50 + 500", "MRR": 0.246, "Hits@10": 0.435},
    {"model": "PBG translation, 50 + 50", "MRR": 0.227, "Hits@10": 0.420},
]


def main() -> None:
    arguments = _parse_arguments()
    record: dict[str, Any] = {"circumstances": circumstances(), "overrides": arguments.set, "models": {}}
    rows: list[dict[str, Any]] = []
    for config in _configs(arguments.only):
        _make_data(data_folder(config, arguments.set), again=arguments.convert_again and not rows)
        run = train(config, config.stem, arguments.set)
        metrics = run.metrics()
        minutes = {"training": run.training_seconds / 60, "process": run.process.wall_seconds / 60}
        record["models"][config.stem] = {"metrics": metrics, "minutes": minutes}
        shown = {name: metrics.get(key) for name, key in METRICS.items()}
        rows.append(_row(config.stem.removeprefix("fb15k237_"), shown, minutes))
    rows += [_row(reference["model"], reference, {}) for reference in REFERENCES]
    text = f"FB15k-237, test edges, filtered, both sides, all entities as candidates.\n\n{markdown_table(rows)}"
    write_record(arguments.results, arguments.record, record, text)


def _configs(only: str) -> list[Path]:
    configs = sorted(CONFIGS.glob(f"fb15k237_{only}.yaml"))
    if not configs:
        raise SystemExit(f"no config is named {CONFIGS}/fb15k237_{only}.yaml")
    return configs


def _make_data(folder: Path, again: bool) -> None:
    source = real_data("FB15k-237")
    held_out: list[str | Path] = ["--valid", source / "valid.tsv.gz", "--test", source / "test.tsv.gz"]
    meaning = ["--single-table", "entity", "--no-header"]
    convert([source / "train.tsv.gz", *held_out, *meaning], folder, again)


def _row(model: Any, metrics: dict[str, Any], minutes: dict[str, float]) -> dict[str, Any]:
    figures = {name: metrics.get(name) for name in METRICS}
    times = {"training min": minutes.get("training"), "process min": minutes.get("process")}
    return {"model": model} | figures | times


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "fb15k237", overrides=True)
    parser.add_argument("--only", default="*", help="part of the config's name after fb15k237_ (a pattern)")
    parser.add_argument("--convert-again", action="store_true", help="replace the data of an earlier conversion")
    return parser.parse_args()


if __name__ == "__main__":
    main()
