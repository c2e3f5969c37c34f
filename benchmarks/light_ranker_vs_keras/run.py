"""tml's light ranker against DNNs of its shape in Keras and FuxiCTR: examples a second on the same rows, in one run.

    python benchmarks/light_ranker_vs_keras/run.py                          # 2 M rows, three rounds by turns
    python benchmarks/light_ranker_vs_keras/run.py --rows 200k --rounds 1
    python benchmarks/light_ranker_vs_keras/run.py --contestants tml,Keras
    python benchmarks/light_ranker_vs_keras/run.py --data FOLDER            # other clicks with the same columns

All train one epoch of the training rows (0.8 of all) of benchmarks/click_data.py, encoded by `tml light-ranker
prepare`. Tables have a row for every id that there may be, where `meta.json` says how many these are (`vocab`); it
matters to systems that go over whole tables in every step. With --min-count they have rows for the ids seen in so many
training rows.

Equal by construction (settings.py): ids and their tables, 13 scaled numbers with marks of missing ones, embeddings of
dim 16, hidden layers of 256 and 128, batch 4,096, one epoch, losses, threads, initial scale of the embeddings, Adam's
rate for the layers. Contestants:

  tml            layers in bfloat16
  tml float32    layers in float32
  Keras          layers in bfloat16 (mixed_bfloat16), several steps a call, without XLA
  Keras float32  the same in float32, Keras's default
  FuxiCTR        its embeddings, layers and training loop, in float32; it has no other type on a processor

Not equal: each system's own way with embeddings. tml updates those of a batch by row-wise Adagrad; Adam of Keras and
of FuxiCTR updates all rows of all tables in every step, which is what both do by default. FuxiCTR also clips gradients
by their norm. tml's model has a linear part beside the hidden layers (`wide`), one unit more of the first layer for
each output; the others have none.

tml reads its rows from parquet while it trains. The others have theirs decoded and scaled in memory before their clocks
start, and only gather batches by shuffled places: Keras by tf.data, FuxiCTR by an iterator of a few lines. That is in
FuxiCTR's favour: its own loaders hand over row by row from Python (npz) or come from processes of Ray (parquet).
FuxiCTR's package on PyPI has the parts of its DNN but not the model, which fuxictr_worker.py puts together.

Rate = examples trained / seconds of training. The interval is
  tml:     from before the first row is read to the end of the last step: reading, shuffling, checking, forward,
           backward, update, logging and tracking. Without: imports, calibration, filling tables, the checkpoint at the
           end.
  others:  from the end of the first call of the training step (Keras traces its graph in it) to the end of the last
           one; examples are counted likewise. Without: imports, reading and scaling rows, filling tables.
Whole-process time, with all of that (of both processes, calibrate and train, of tml), is reported beside it; memory is
the peak of all processes of a system. The figures to quote are the medians of the ratios, round by round.

The last round's models are scored by one evaluator, scikit-learn's AUC, on the same test rows. With --max-examples
the others train on a part of the epoch only, and their AUC is that of this part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tml.benchmarks.click_data import click_data
from tml.benchmarks.harness import DATA, RUNS, argument_parser, circumstances, parse_count, some_of, write_record
from tml.benchmarks.light_ranker_vs_keras.settings import (
    Settings,
    click_features,
    keras_extras,
    peer_job,
    ranker_config,
)
from tml.benchmarks.peers import peer_versions, set_up_peer
from tml.benchmarks.processes import run_measured
from tml.benchmarks.ranker_runs import RankerTraining, auc, predict, prepare, rows_of, train_only, write_yaml
from tml.benchmarks.turns import Measured, take_turns
from tml.projects.light_ranker.features.spec import FeatureSpec

HERE = Path(__file__).resolve().parent
WORK = RUNS / "light_ranker_vs_keras"


def main() -> None:
    arguments = _parse_arguments()
    settings = Settings(
        beta=arguments.beta, min_count=arguments.min_count, workers=arguments.workers,
        batch_size=arguments.batch_size, dim=arguments.dim,
    )  # fmt: skip
    names = chosen(arguments.contestants, settings.beta)
    peers = {name: SYSTEMS[name].set_up() for name in SYSTEMS if any(name in contestant for contestant in names)}
    source = arguments.data or click_data(arguments.rows)
    meta = {"folder": source.name} | json.loads((source / "meta.json").read_text(encoding="utf-8"))
    vocab = meta.get("vocab") if settings.min_count is None else None
    meta["tables"] = "of all ids" if vocab else f"of ids seen in at least {settings.min_count or 1} rows"
    data = prepared_clicks(source, vocab, settings.min_count or 1)
    where = circumstances()
    where["peers"] = {name: peer_versions(python, SYSTEMS[name].packages) for name, python in peers.items()}
    record: dict[str, Any] = {
        "circumstances": where,
        "settings": asdict(settings),
        "overrides": arguments.set,
        "max_examples": arguments.max_examples,
        "data": meta,
    }
    contestants: dict[str, _Ours | _Theirs] = {}
    for name in names:
        if _is_ours(name):
            contestants[name] = _Ours(name, settings, data, arguments.set)
        else:
            contestants[name] = _Theirs(name, settings, data, peers[_system(name)], arguments.max_examples)
    theirs = [name for name in names if not _is_ours(name)]
    runs = take_turns({name: each.train for name, each in contestants.items()}, arguments.rounds, "examples", theirs)
    quality = {} if arguments.no_quality else {name: each.quality() for name, each in contestants.items()}
    record |= runs.record() | {"test_auc": quality}
    report = runs.report({name: {"test AUC": auc_of_test} for name, auc_of_test in quality.items()})
    text = f"{_work(settings, data, arguments.max_examples, meta)}\n\n{report}"
    write_record(arguments.results, arguments.record, record, text)


@dataclass(frozen=True)
class System:
    """Another system.

    Attributes:
        name: of its script (`setup_NAME.sh`), its worker (`NAME_worker.py`) and its environment (`.venv-NAME`).
        packages: whose versions are recorded.
    """

    name: str
    packages: tuple[str, ...]

    def set_up(self) -> Path:
        """Make its environment if it is missing; returns its Python."""
        return set_up_peer(HERE / f"setup_{self.name}.sh", f"TML_VENV_{self.name.upper()}", f".venv-{self.name}")


SYSTEMS = {
    "Keras": System("keras", ("tensorflow-cpu", "keras", "numpy")),
    "FuxiCTR": System("fuxictr", ("fuxictr", "torch", "numpy")),
}
_FLOAT32 = " float32"
CONTESTANTS = ("tml", f"tml{_FLOAT32}", "Keras", f"Keras{_FLOAT32}", "FuxiCTR")


def chosen(names: Sequence[str] | None, beta: float) -> list[str]:
    """Who takes part, ours first; all who can, unless some are named.

    Args:
        names: some of `CONTESTANTS`.
        beta: watch time is learnt too, which FuxiCTR's DNN does not do.

    Raises:
        SystemExit: FuxiCTR is named and cannot take part, or tml or its rivals are left out.
    """
    if beta and names and "FuxiCTR" in names:
        raise SystemExit("FuxiCTR's DNN learns clicks alone: leave it out of --contestants, or --beta")
    found = [name for name in CONTESTANTS if name in names] if names else list(CONTESTANTS)
    found = [name for name in found if not (beta and name == "FuxiCTR")]
    if len({_is_ours(name) for name in found}) < 2:
        raise SystemExit(f"--contestants are {', '.join(found)}: name tml and at least one that it is held against")
    return found


class _Ours:
    """tml's side."""

    def __init__(self, name: str, settings: Settings, data: Path, overrides: list[str]) -> None:
        self._settings, self._data, self._overrides, self._name = settings, data, overrides, _file_name(name)
        config = ranker_config(settings, data, bf16=not name.endswith(_FLOAT32))
        self._config = write_yaml(WORK / f"{self._name}.yaml", config)
        self._run: RankerTraining | None = None

    def train(self) -> Measured:
        threads = {"OMP_NUM_THREADS": str(self._settings.workers)}
        run = self._run = train_only(self._config, f"{WORK.name}/{self._name}", self._overrides, threads)
        return Measured(run.num_examples, run.training_seconds, run.process)

    def quality(self) -> float:
        assert self._run is not None
        predicted = predict(self._run.save_dir, self._data / "test")
        return auc(predicted.click, predicted.probability)


class _Theirs:
    """The side of another system."""

    def __init__(self, name: str, settings: Settings, data: Path, python: Path, max_examples: int | None) -> None:
        self._out = WORK / _file_name(name)
        self._out.mkdir(parents=True, exist_ok=True)
        job = peer_job(settings, data, self._out, max_examples)
        if _system(name) == "Keras":
            job |= keras_extras(settings, bf16=not name.endswith(_FLOAT32))
        path = self._out / "job.json"
        path.write_text(json.dumps(job, indent=1), encoding="utf-8")
        self._command = [str(python), str(HERE / f"{SYSTEMS[_system(name)].name}_worker.py"), str(path)]
        self._environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "OMP_NUM_THREADS": str(settings.workers)}

    def train(self) -> Measured:
        process = run_measured(self._command, self._out / "log", self._environment)
        timing = json.loads((self._out / "timing.json").read_text(encoding="utf-8"))
        return Measured(timing["num_examples"], timing["training_seconds"], process)

    def quality(self) -> float:
        found = np.load(self._out / "predictions.npz")
        return auc(found["labels"], found["scores"])


def _is_ours(name: str) -> bool:
    return _system(name) == "tml"


def _system(name: str) -> str:
    return name.removesuffix(_FLOAT32)


def _file_name(name: str) -> str:
    return name.replace(" ", "-")


def prepared_clicks(source: Path, vocab: Sequence[int] | None, min_count: int) -> Path:
    """The folder of encoded rows, made if it is missing.

    Args:
        source: a folder with `{train,valid,test}.parquet`.
        vocab: values of each id column, for tables of all ids; None for tables of those that were seen.
        min_count: and in so many training rows.
    """
    splits = [argument for split in ("train", "test") for argument in (f"--{split}", source / f"{split}.parquet")]
    out = DATA / f"{source.resolve().name}-encoded-{'all-ids' if vocab else min_count}"
    return prepare(click_features(vocab, min_count), splits, out)


def _work(settings: Settings, data: Path, limit: int | None, meta: dict[str, Any]) -> str:
    num_rows, spec = rows_of(data / "train"), FeatureSpec.load(data)
    part = "" if limit is None or limit >= num_rows else f" (by the others: the first {limit:,} of them)"
    layers = " and ".join(map(str, settings.hidden_sizes))
    best = {"reachable": meta.get("reachable_auc"), "of the truth": meta.get("best_on_test", {}).get("auc")}
    limits = ", ".join(f"{name} {value:.4f}" for name, value in best.items() if value is not None)
    return (
        f"{num_rows:,} rows trained once{part}; {len(spec.ids)} ids, tables {meta['tables']}, "
        f"{sum(feature.num_rows for feature in spec.ids):,} rows of {settings.dim} in all; {len(spec.continuous)} "
        f"numbers; layers {layers}, in bfloat16 where it is not said (FuxiCTR: float32); batch "
        f"{settings.batch_size:,}; {settings.workers} threads"
        f"{f'; watch time learnt too, beta {settings.beta}' if settings.beta else ''}. "
        f"Clicks: {meta['folder']}{f'; test AUC {limits}' if limits else ''}."
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(
        __doc__, "light_ranker_vs_keras", rounds="trainings of each system, taking turns", overrides=True
    )
    default = Settings()
    parser.add_argument("--rows", type=parse_count, default=2_000_000, help="of the made-up clicks, such as 200k or 2m")
    parser.add_argument("--data", type=Path, help="folder of clicks with the same columns, instead of made-up ones")
    parser.add_argument(
        "--contestants", type=some_of(CONTESTANTS), help=f"some of {','.join(CONTESTANTS)} (default: all)"
    )
    parser.add_argument("--max-examples", type=parse_count, help="rows that the others train on (default: the epoch)")
    parser.add_argument("--batch-size", type=int, default=default.batch_size, help="rows of a step")
    parser.add_argument("--dim", type=int, default=default.dim, help="length of an embedding")
    parser.add_argument("--min-count", type=int, help="tables of the ids seen in so many training rows, not of all")
    parser.add_argument("--beta", type=float, default=default.beta, help="learn watch time too, with this factor")
    parser.add_argument("--workers", type=int, default=default.workers, help="threads")
    parser.add_argument("--no-quality", action="store_true", help="do not score the test rows at the end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
