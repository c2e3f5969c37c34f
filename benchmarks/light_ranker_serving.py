"""Latency of 1,500 candidates of one user on two threads: the exported ranker beside the eager model and a plain graph.

    python benchmarks/light_ranker_serving.py

An untrained model of 26 id features (2.7 M rows of 16 in all, sizes in geometric progression), 13 numbers and hidden
layers of 256 and 128 is exported; half of its features are the user's (--user-ids sets another share). Requests differ,
ids are drawn with u ** 3 (a few are frequent), every 20th number is missing. Contestants take turns, a block of
requests each, so that a machine that slows down slows all of them. A latency runs from encoded ids and numbers to
probabilities in numpy:

- scorer: `Scorer.score_encoded`, the user's half of the first layer computed once
- scorer, raw: `Scorer.score`, from raw columns (Arrow), hashing and checks included
- scorer, int8: the same as `scorer` in 8 bits
- plain graph: the same model and exporter, every feature the candidate's, the user's repeated; ONNX Runtime as above
- eager: the trainer's own model in torch, the user's features repeated

p50 and p99 are over all requests of a contestant. Ratios are of the medians of a round, ours over theirs.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tml.benchmarks.harness import RESULTS, Spread, circumstances, markdown_table, ratios, versions, write_record

NUM_IDS, NUM_NUMBERS, TOTAL_ROWS, DIM = 26, 13, 2_700_000, 16
SCORER, RAW, INT8 = "scorer", "scorer, raw", "scorer, int8"
PLAIN, EAGER = "plain graph", "eager"

# A new contestant finds the caches and threads of the last one; these requests are not measured.
_WARM_UP = 5
# ONNX Runtime's and torch's threads spin for a while after a run, and would take the next one's cores.
_PAUSE_SECONDS = 0.05


class Request(NamedTuple):
    """The same request in every form: encoded sides, encoded rows with the user repeated, and raw columns."""

    user: Any
    candidates: Any
    rows: Any
    raw_user: dict[str, Any]
    raw_candidates: pa.Table


def main() -> None:
    arguments = _parse_arguments()
    record: dict[str, Any] = {
        "circumstances": circumstances(),
        "settings": {k: v for k, v in vars(arguments).items() if k != "results"},
    }
    record["circumstances"]["versions"] |= versions(("onnxruntime", "onnx"))
    with tempfile.TemporaryDirectory() as folder:
        contestants = _contestants(Path(folder), arguments)
        requests = _requests(Path(folder), arguments)
        differences = {
            name: _largest_difference(answer, contestants[EAGER], requests[:3]) for name, answer in contestants.items()
        }
        milliseconds = _measure(contestants, requests, arguments)
    rows = [_row(name, rounds, differences[name]) for name, rounds in milliseconds.items()]
    medians = {name: [float(np.median(block)) for block in rounds] for name, rounds in milliseconds.items()}
    against = {ours: {name: ratios(medians[ours], medians[name]) for name in (PLAIN, EAGER)} for ours in (SCORER, INT8)}
    record |= {"rows": rows, "medians_of_rounds": medians, "time_over": against}
    text = (
        f"{arguments.candidates:,} candidates of one user, {arguments.threads} threads, {NUM_IDS} id features "
        f"({arguments.user_ids} the user's; {TOTAL_ROWS / 1e6:.1f} M rows of {DIM}), {NUM_NUMBERS} numbers, hidden "
        f"layers 256 and 128, interaction {arguments.interaction}; "
        f"{arguments.rounds} rounds of {arguments.requests} requests each.\n\n{markdown_table(rows)}\n\n"
        f"The scorer takes {_share(against[SCORER][PLAIN])} of the plain graph's time and "
        f"{_share(against[SCORER][EAGER])} of the eager model's; in 8 bits {_share(against[INT8][PLAIN])} and "
        f"{_share(against[INT8][EAGER])} (median of rounds, lowest to highest). Raw requests hash every id; "
        "vocabularies cost more."
    )
    write_record(arguments.results, "light_ranker_serving", record, text)


def _contestants(folder: Path, arguments: argparse.Namespace) -> dict[str, Callable[[Request], np.ndarray]]:
    import torch

    from tml.projects.light_ranker.config import ExportConfig
    from tml.projects.light_ranker.export import export_ranker
    from tml.projects.light_ranker.export.check import trainer_scores
    from tml.projects.light_ranker.serving.scorer import Scorer

    torch.set_num_threads(arguments.threads)
    model = _model(_write_features(folder / "features", arguments.user_ids), arguments.interaction)
    split = _write_split(folder / "split.parquet", model)

    def exported(name: str, model: Any, features: Path, **settings: bool) -> Path:
        return export_ranker(
            model, folder / name, features_dir=features, settings=ExportConfig(**settings), evaluation_files=[split]
        )

    ours = exported("split", model, folder / "features", int8=True)
    encoder = _write_features(folder / "plain_features", 0)
    plain_model = _model(encoder, arguments.interaction)
    plain = Scorer(exported("plain", plain_model, folder / "plain_features"), arguments.threads)
    scorer, int8 = (Scorer(ours, arguments.threads, int8=is_int8) for is_int8 in (False, True))
    no_user = encoder.encode({}, "user")
    return {
        SCORER: lambda request: scorer.score_encoded(request.user, request.candidates).probabilities,
        RAW: lambda request: scorer.score(request.raw_user, request.raw_candidates).probabilities,
        INT8: lambda request: int8.score_encoded(request.user, request.candidates).probabilities,
        PLAIN: lambda request: plain.score_encoded(no_user, request.rows).probabilities,
        EAGER: lambda request: trainer_scores(model, None, request.rows)["raw"],
    }


def _write_features(folder: Path, num_user_ids: int) -> Any:
    """The folder that `prepare` would write, with so many of the id features, and as large a share of the numbers, the
    user's; large and small tables alike."""
    from tml.core.config.loading import load_config
    from tml.projects.light_ranker.features.config import FeatureConfig
    from tml.projects.light_ranker.features.encoder import Encoder

    folder.mkdir()
    lines = ["features:"]
    for number, size in enumerate(_table_sizes()):
        side = _side(number, num_user_ids)
        hashed = f"{{num_buckets: {size - 2}}}"
        lines.append(f"  - {{name: C{number}, kind: categorical, side: {side}, hashed: {hashed}, type: int}}")
    for number in range(NUM_NUMBERS):
        side = _side(number, num_user_ids)
        lines.append(f"  - {{name: I{number}, kind: continuous, side: {side}}}")
    lines.append("labels:\n  - {name: click, kind: binary}\n")
    (folder / "features.yaml").write_text("\n".join(lines), encoding="utf-8")
    encoder = Encoder(load_config(FeatureConfig, folder / "features.yaml", environment={}), {}, {})
    (folder / "vocab").mkdir()
    encoder.spec.save(folder / "encoding.json")
    return encoder


def _side(number: int, num_user_ids: int) -> str:
    """The user's features are spread evenly over all."""
    is_user = (number + 1) * num_user_ids // NUM_IDS > number * num_user_ids // NUM_IDS
    return "user" if is_user else "candidate"


def _table_sizes() -> list[int]:
    sizes = np.geomspace(10, 1e6, NUM_IDS)
    return [max(int(size), 4) for size in sizes * (TOTAL_ROWS / sizes.sum())]


def _model(encoder: Any, interaction: str) -> Any:
    """An untrained model; the same weights for the same features, whatever their sides."""
    import torch

    from tml.common.modules.normalizers import Normalizer
    from tml.projects.light_ranker.calibration import Calibration
    from tml.projects.light_ranker.config import LightRankerConfig
    from tml.projects.light_ranker.models.build import build_model, build_slots

    data = {"data_root": "unused", "global_batch_size": 4096}
    mlp = {"embedding_dim": DIM, "hidden_sizes": [256, 128], "init_scale": 0.3}
    mlp |= {} if interaction == "none" else {"interaction": {"kind": interaction}}
    config = LightRankerConfig.model_validate({"features_dir": "unused", "train_data": data, "model": {"mlp": mlp}})
    names = [feature.name for feature in encoder.spec.continuous]
    statistics = (torch.full((len(names),), value, dtype=torch.float64) for value in (2.0, 1.5, 1.0))
    calibration = Calibration(Normalizer(names, ["log_z_score"] * len(names), *statistics), {}, "untrained")
    slots = build_slots(config, encoder.spec, calibration, "cpu")
    return build_model(config, slots, calibration, torch.device("cpu"), local=True).eval()


def _write_split(path: Path, model: Any) -> str:
    """A few rows whose labels follow the untrained model: 8 bits have to say what they cost."""
    import pyarrow.parquet as pq

    from tml.projects.light_ranker.export.check import trainer_scores

    rng = np.random.default_rng(1)
    rows = _encoded(model.spec, rng, 2_000)
    clicks = rng.random(2_000) < trainer_scores(model, None, rows)["raw"]
    columns: dict[str, Any] = {f"id.C{number}": rows.ids[:, number] for number in range(NUM_IDS)}
    columns |= {f"x.I{number}": rows.continuous[:, number] for number in range(NUM_NUMBERS)}
    columns |= {"y.click": clicks.astype(np.float32), "w": np.ones(2_000, np.float32)}
    pq.write_table(pa.table(columns), path)
    return str(path)


def _encoded(spec: Any, rng: np.random.Generator, num_rows: int) -> Any:
    from tml.projects.light_ranker.export.rows import CheckRows

    sizes = np.array([feature.num_rows for feature in spec.ids])
    numbers = rng.lognormal(2.0, 1.5, (num_rows, NUM_NUMBERS)).astype(np.float32)
    return CheckRows(
        spec,
        (2 + (sizes - 2) * rng.random((num_rows, NUM_IDS)) ** 3).astype(np.int64),
        np.where(rng.random(numbers.shape) < 0.05, np.float32(np.nan), numbers),
        np.empty((num_rows, 0), np.float32),
        np.empty((num_rows, 0), np.float32),
        np.ones(num_rows, np.float32),
    )


def _requests(folder: Path, arguments: argparse.Namespace) -> list[Request]:
    """Different requests, in every form: raw ones are encoded as the scorer would."""
    from tml.projects.light_ranker.features.encoder import Encoder

    encoder = Encoder.load(folder / "features")
    spec, rng = encoder.spec, np.random.default_rng(0)
    sides = {feature.name: feature.side for feature in spec.features}
    requests = []
    for _ in range(arguments.distinct):
        drawn = _encoded(spec, rng, arguments.candidates)
        # Rows of a hashed feature stand in for its raw values, which can be any integers.
        raw: dict[str, Any] = {f"C{number}": drawn.ids[:, number] for number in range(NUM_IDS)}
        raw |= {f"I{number}": pa.array(drawn.continuous[:, number], from_pandas=True) for number in range(NUM_NUMBERS)}
        user = {name: pa.array(raw[name])[0].as_py() for name, side in sides.items() if side == "user"}
        candidates = pa.table({name: values for name, values in raw.items() if sides[name] == "candidate"})
        repeated = {name: [value] * arguments.candidates for name, value in user.items()}
        encoded = encoder.encode(repeated | {name: candidates[name] for name in candidates.column_names})
        requests.append(
            Request(
                encoder.encode({name: [value] for name, value in user.items()}, "user"),
                encoder.encode({name: candidates[name] for name in candidates.column_names}, "candidate"),
                dataclasses.replace(drawn, ids=encoded.ids, continuous=encoded.continuous),
                user,
                candidates,
            )
        )
    return requests


def _largest_difference(
    answer: Callable[[Request], np.ndarray], expected: Callable[[Request], np.ndarray], requests: list[Request]
) -> float:
    return max(float(np.abs(answer(request) - expected(request)).max()) for request in requests)


def _measure(
    contestants: dict[str, Callable[[Request], np.ndarray]], requests: list[Request], arguments: argparse.Namespace
) -> dict[str, list[np.ndarray]]:
    """Milliseconds of each request, by contestant and round."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in contestants}
    for number in range(arguments.rounds):
        for name, answer in contestants.items():
            time.sleep(_PAUSE_SECONDS)
            for request in requests[:_WARM_UP]:
                answer(request)
            block = np.empty(arguments.requests)
            for place in range(arguments.requests):
                request = requests[(number * arguments.requests + place) % len(requests)]
                start = time.perf_counter()
                answer(request)
                block[place] = time.perf_counter() - start
            found[name].append(block * 1e3)
    return found


def _row(name: str, rounds: list[np.ndarray], difference: float) -> dict[str, Any]:
    everything = np.concatenate(rounds)
    medians = Spread.of([float(np.median(block)) for block in rounds])
    return {
        "contestant": name,
        "p50 ms": round(float(np.percentile(everything, 50)), 3),
        "p99 ms": round(float(np.percentile(everything, 99)), 3),
        "p50 of rounds": medians.shown(3),
        "largest difference from eager": f"{difference:.1e}",
    }


def _share(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1_500, help="of each request")
    parser.add_argument("--user-ids", type=int, default=NUM_IDS // 2, help=f"of the {NUM_IDS} id features")
    parser.add_argument("--interaction", default="none", choices=("none", "fwfm", "dot", "cross"), help="of the model")
    parser.add_argument("--threads", type=int, default=2, help="of every contestant")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each contestant")
    parser.add_argument("--requests", type=int, default=100, help="measured in each turn")
    parser.add_argument("--distinct", type=int, default=64, help="different requests")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
