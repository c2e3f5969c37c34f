"""tml's light ranker against a Keras DNN of the same shape: examples a second on the same rows, in one run.

    python benchmarks/light_ranker_vs_keras/run.py                          # 2 M rows, three rounds: A B A B A B
    python benchmarks/light_ranker_vs_keras/run.py --rows 200k --rounds 1
    python benchmarks/light_ranker_vs_keras/run.py --data FOLDER            # other clicks with the same columns

Both train one epoch of the training rows (0.8 of all) of benchmarks/click_data.py, encoded by `tml light-ranker
prepare`. Equal by construction (settings.py): ids and their tables, 13 scaled numbers with marks of missing ones,
embeddings of dim 16, hidden layers of 256 and 128, batch 4,096, one epoch, losses, bfloat16 layers, threads, initial
scale of the embeddings, Adam's rate for the layers.

Not equal: each system's own way with embeddings. tml updates those of a batch by row-wise Adagrad; Keras's Adam updates
all rows of all tables in every step, which is what `keras.optimizers.Adam` does. tml's model has a linear part beside
the hidden layers (`wide`), one unit more of the first layer for each output; Keras's has none. Keras's rows are decoded
and scaled to arrays in memory before its clock starts, and its tf.data pipeline only gathers batches by shuffled
places; tml reads its rows from parquet while it trains. Keras runs without XLA and with several steps a call
(settings.py).

Rate = examples trained / seconds of training. The interval is
  tml:   from before the first row is read to the end of the last step: reading, shuffling, checking, forward, backward,
         update, logging and tracking. Without: imports, calibration, filling tables, the checkpoint at the end.
  Keras: from the end of its first call, which traces the graph, to the end of the last step; examples are counted
         likewise. Without: imports, reading and scaling rows, filling tables, tracing.
Whole-process time, with all of that (of both processes, calibrate and train, of tml), is reported beside it; memory is
the peak of all processes of a system. The figure to quote is the median of the ratios, round by round.

The last round's models are scored by one evaluator, scikit-learn's AUC, on the same test rows. With --max-examples
Keras trains on a part of the epoch only, and its AUC is that of this part.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tml.benchmarks.click_data import click_data
from tml.benchmarks.harness import DATA, RESULTS, RUNS, circumstances, parse_count, write_record
from tml.benchmarks.light_ranker_vs_keras.settings import Settings, click_features, keras_job, ranker_config
from tml.benchmarks.peers import peer_versions, set_up_peer
from tml.benchmarks.processes import run_measured
from tml.benchmarks.ranker_runs import RankerTraining, auc, predict, prepare, rows_of, train_only, write_yaml
from tml.benchmarks.turns import Measured, take_turns

HERE = Path(__file__).resolve().parent
WORK = RUNS / "light_ranker_vs_keras"


def main() -> None:
    arguments = _parse_arguments()
    settings = Settings(
        beta=arguments.beta, min_count=arguments.min_count, bf16=not arguments.fp32, workers=arguments.workers,
        batch_size=arguments.batch_size, dim=arguments.dim,
    )  # fmt: skip
    python = set_up_peer(HERE / "setup_keras.sh", "TML_VENV_KERAS", ".venv-keras")
    source, data = prepared_clicks(arguments.data, arguments.rows, settings.min_count)
    record: dict[str, Any] = {
        "circumstances": circumstances()
        | {"keras_versions": peer_versions(python, ("tensorflow-cpu", "keras", "numpy"))},
        "settings": asdict(settings),
        "overrides": arguments.set,
        "data": {"folder": source.name} | json.loads((source / "meta.json").read_text(encoding="utf-8")),
    }
    ours = _Ours(settings, data, arguments.set)
    theirs = _Keras(settings, data, python, arguments.max_examples)
    runs = take_turns({"tml": ours.train, "Keras": theirs.train}, arguments.rounds, "examples")
    quality = {} if arguments.no_quality else {"tml": ours.quality(), "Keras": theirs.quality()}
    record |= runs.record() | {"test_auc": quality}
    report = runs.report({name: {"test AUC": auc_of_test} for name, auc_of_test in quality.items()})
    text = f"{_work(settings, data, theirs.job, record['data'])}\n\n{report}"
    write_record(arguments.results, "light_ranker_vs_keras", record, text)


class _Ours:
    """tml's side."""

    def __init__(self, settings: Settings, data: Path, overrides: list[str]) -> None:
        self._settings, self._data, self._overrides = settings, data, overrides
        self._config = write_yaml(WORK / "tml.yaml", ranker_config(settings, data))
        self._run: RankerTraining | None = None

    def train(self) -> Measured:
        threads = {"OMP_NUM_THREADS": str(self._settings.workers)}
        run = self._run = train_only(self._config, "light_ranker_vs_keras/tml", self._overrides, threads)
        return Measured(run.num_examples, run.training_seconds, run.process)

    def quality(self) -> float:
        assert self._run is not None
        predicted = predict(self._run.save_dir, self._data / "test")
        return auc(predicted.click, predicted.probability)


class _Keras:
    """Keras's side."""

    def __init__(self, settings: Settings, data: Path, python: Path, max_examples: int | None) -> None:
        self._python, self._out, self._job = python, WORK / "keras", WORK / "keras.json"
        self.job = keras_job(settings, data, self._out, max_examples)
        self._job.write_text(json.dumps(self.job, indent=1), encoding="utf-8")

    def train(self) -> Measured:
        command = [str(self._python), str(HERE / "keras_worker.py"), str(self._job)]
        process = run_measured(command, WORK / "keras.log", {"TF_CPP_MIN_LOG_LEVEL": "2"})
        timing = json.loads((self._out / "timing.json").read_text(encoding="utf-8"))
        return Measured(timing["num_examples"], timing["training_seconds"], process)

    def quality(self) -> float:
        found = np.load(self._out / "predictions.npz")
        return auc(found["labels"], found["scores"])


def prepared_clicks(source: Path | None, num_rows: int, min_count: int) -> tuple[Path, Path]:
    """The folder of raw clicks, and that of their encoded rows; both are made if they are missing.

    Args:
        source: a folder with `{train,valid,test}.parquet` and `meta.json`; None makes up clicks.
        num_rows: of made-up clicks.
        min_count: of the vocabularies.
    """
    source = source or click_data(num_rows)
    splits = [argument for split in ("train", "test") for argument in (f"--{split}", source / f"{split}.parquet")]
    out = DATA / f"{source.resolve().name}-encoded-{min_count}"
    return source, prepare(click_features(min_count), splits, out)


def _work(settings: Settings, data: Path, job: dict[str, Any], meta: dict[str, Any]) -> str:
    num_rows, limit = rows_of(data / "train"), job["max_examples"]
    part = "" if limit is None or limit >= num_rows else f" (Keras: the first {limit:,} of them)"
    layers = " and ".join(map(str, settings.hidden_sizes))
    best = {"reachable": meta.get("reachable_auc"), "of the truth": meta.get("best_on_test", {}).get("auc")}
    limits = ", ".join(f"{name} {value:.4f}" for name, value in best.items() if value is not None)
    return (
        f"{num_rows:,} rows trained once{part}, {len(job['table_rows'])} ids in tables of {sum(job['table_rows']):,} "
        f"rows in all, dim {settings.dim}, {len(job['number_columns'])} numbers; layers {layers}, "
        f"{'bfloat16' if settings.bf16 else 'float32'}; batch {settings.batch_size:,}; {settings.workers} threads"
        f"{f'; watch time learnt too, beta {settings.beta}' if settings.beta else ''}. "
        f"Clicks: {meta['folder']}{f'; test AUC {limits}' if limits else ''}."
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Settings()
    parser.add_argument("--rows", type=parse_count, default=2_000_000, help="of the made-up clicks, such as 200k or 2m")
    parser.add_argument("--data", type=Path, help="folder of clicks with the same columns, instead of made-up ones")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each system, taking turns")
    parser.add_argument("--max-examples", type=parse_count, help="rows that Keras trains on (default: the epoch)")
    parser.add_argument("--batch-size", type=int, default=default.batch_size, help="rows of a step")
    parser.add_argument("--dim", type=int, default=default.dim, help="length of an embedding")
    parser.add_argument("--min-count", type=int, default=default.min_count, help="rarer ids share a row")
    parser.add_argument("--beta", type=float, default=default.beta, help="learn watch time too, with this factor")
    parser.add_argument("--fp32", action="store_true", help="layers in float32 instead of bfloat16, of both")
    parser.add_argument("--workers", type=int, default=default.workers, help="threads")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting of tml's config"
    )
    parser.add_argument("--no-quality", action="store_true", help="do not score the test rows at the end")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
