"""How much TwHIN learns of a planted graph: filtered MRR on its held-out edges, against popularity and chance.

    python benchmarks/planted_quality.py                # 2 M edges, 3 epochs of translation + dot, dim 128

The graph is `tml sample-graph`'s: 256 communities, 80 % of the edges inside one, so most of an edge cannot be known and
the MRR of a perfect model is far below 1. It is trained with the settings of benchmarks/twhin_vs_pbg (50 in-batch + 50
uniform negatives a side, softmax, row-wise Adagrad, rate 0.1); the test edges are ranked filtered, both sides, among
all nodes of their table.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import yaml

from tml.benchmarks.harness import RUNS, argument_parser, circumstances, markdown_table, parse_count, write_record
from tml.benchmarks.runs import evaluate, planted_graph, train
from tml.benchmarks.twhin_vs_pbg.settings import Graph, Settings, twhin_config
from tml.core.config import load_config
from tml.projects.twhin.config import TwhinConfig

METRICS = {"MRR": "filtered.mrr", "Hits@1": "filtered.hits@1", "Hits@10": "filtered.hits@10", "Recall@10": "recall@10"}


def main() -> None:
    arguments = _parse_arguments()
    # It brings torch, for which --help should not wait.
    from tml.projects.twhin.popularity import baselines_of_config

    settings = Settings(dim=arguments.dim, num_epochs=arguments.epochs, batch_size=arguments.batch_size)
    record: dict[str, Any] = {
        "circumstances": circumstances(),
        "settings": asdict(settings),
        "overrides": arguments.set,
    }
    graph = Graph.read(planted_graph(arguments.edges))
    config = RUNS / "planted_quality.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(twhin_config(settings, graph), sort_keys=False), encoding="utf-8")
    run = train(config, "planted_quality", arguments.set)
    settings_of_test = [*arguments.set, f"validation_data.data_root={graph.edges('valid')}"]
    metrics = {"TwHIN": evaluate(config, run, settings_of_test)}
    metrics |= baselines_of_config(load_config(TwhinConfig, config, settings_of_test), "test", arguments.max_edges)
    rows = [{"model": name} | {k: found.get(key) for k, key in METRICS.items()} for name, found in metrics.items()]
    record |= {"metrics": metrics, "training_seconds": run.training_seconds, "num_edges": run.num_edges}
    text = (
        f"Planted graph of {arguments.edges:,} edges, {settings.num_epochs} epochs, translation + dot, dim "
        f"{settings.dim}: {int(metrics['TwHIN']['num_edges']):,} test edges, filtered, all candidates.\n\n"
        f"{markdown_table(rows)}\n\nTraining: {run.num_edges:,} edges in {run.training_seconds:.1f} s "
        f"({run.num_edges / run.training_seconds:,.0f} edges/s)."
    )
    write_record(arguments.results, arguments.record, record, text)


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "planted_quality", overrides=True)
    parser.add_argument("--edges", type=parse_count, default=2_000_000, help="of the graph, such as 200k or 2m")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=Settings().batch_size)
    parser.add_argument("--max-edges", type=int, help="rank so many test edges for the baselines (default: all)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
