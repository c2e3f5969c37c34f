"""TwHIN on real Twitter mentions and replies (SNAP Higgs) against popularity: filtered MRR and Recall@10.

    TML_DATA=/path/to/data python benchmarks/higgs.py

Converts higgs-twitter-mention-reply/typed_edges.tsv.gz (116,408 users, 183,341 edges; 90 / 5 / 5 % by seed), trains
projects/twhin/configs/higgs.yaml and ranks the test edges among all users, true edges left out. Popularity ranks users
by their degree in the training edges, per relation and side; chance is a random order, by formula. MRR is the mean
over both sides of an edge; Recall@10 is the share of a left-hand side's test answers among its first ten.
"""

from __future__ import annotations

import argparse
from typing import Any

from tml.benchmarks.harness import ROOT, argument_parser, circumstances, markdown_table, write_record
from tml.benchmarks.runs import convert, data_folder, real_data, train
from tml.core.config import load_config
from tml.projects.twhin.config import TwhinConfig

CONFIG = ROOT / "projects" / "twhin" / "configs" / "higgs.yaml"
METRICS = {
    "MRR": "filtered.mrr",
    "MRR lhs": "filtered.lhs.mrr",
    "MRR rhs": "filtered.rhs.mrr",
    "Hits@10": "filtered.hits@10",
    "Recall@10": "recall@10",
}


def main() -> None:
    arguments = _parse_arguments()
    # It brings torch, for which --help should not wait.
    from tml.projects.twhin.popularity import baselines_of_config

    record: dict[str, Any] = {"circumstances": circumstances(), "overrides": arguments.set}
    file = real_data("higgs-twitter-mention-reply") / "typed_edges.tsv.gz"
    meaning = ["--single-table", "user", "--columns", "0,1,2", "--no-header"]
    split = ["--split-fractions", "0.9,0.05,0.05", "--seed", "0"]
    convert([file, *meaning, *split], data_folder(CONFIG, arguments.set), arguments.convert_again)
    run = train(CONFIG, "higgs", arguments.set)
    config = load_config(TwhinConfig, CONFIG, arguments.set)
    metrics = {"TwHIN": run.metrics()} | baselines_of_config(config, "test", arguments.max_edges)
    rows = [{"model": name} | _shown(found) for name, found in metrics.items()]
    record |= {"metrics": metrics, "minutes": run.process.wall_seconds / 60}
    ratio = metrics["TwHIN"]["filtered.mrr"] / metrics["popularity"]["filtered.mrr"]
    text = (
        f"{int(metrics['TwHIN']['num_edges']):,} test edges of SNAP Higgs mention + reply, filtered, all users as "
        f"candidates.\n\n{markdown_table(rows)}\n\nTwHIN has {ratio:.1f} times the MRR of popularity; reading, "
        f"training and evaluation took {run.process.wall_seconds / 60:.1f} minutes."
    )
    write_record(arguments.results, arguments.record, record, text)


def _shown(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: metrics.get(key) for name, key in METRICS.items()}


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "higgs", overrides=True)
    parser.add_argument("--max-edges", type=int, help="rank so many test edges for the baselines (default: all)")
    parser.add_argument("--convert-again", action="store_true", help="replace the data of an earlier conversion")
    return parser.parse_args()


if __name__ == "__main__":
    main()
