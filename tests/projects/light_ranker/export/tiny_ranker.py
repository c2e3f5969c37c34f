"""A small encoder's folder with features of every kind, and models of it with weights that make scores differ."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tml.common.modules.normalizers import Normalizer
from tml.core.config.loading import load_config
from tml.projects.light_ranker.calibration import Calibration
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.export import export_ranker
from tml.projects.light_ranker.export.rows import CheckRows, made_up_rows
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.encoder import Encoder
from tml.projects.light_ranker.features.vocabulary import Vocabulary
from tml.projects.light_ranker.models.build import build_model, build_slots

FEATURES = """
features:
  - {name: country, kind: categorical, side: user, vocabulary: {}, type: string}
  - {name: user_id, kind: categorical, side: user, hashed: {num_buckets: 50}, type: int}
  - {name: interests, kind: ids, side: user, max_length: 3, pooling: sum, vocabulary: {}, type: string}
  - {name: tweet, kind: categorical, side: candidate, vocabulary: {}, type: int, column: tweet_id}
  - {name: topics, kind: ids, side: candidate, max_length: 4, pooling: mean, vocabulary: {}, type: string}
  - {name: author, kind: categorical, side: candidate, hashed: {num_buckets: 30}, type: string}
  - {name: age, kind: continuous, side: user, discretizer: {kind: percentile, num_bins: 4}}
  - {name: likes, kind: continuous, side: candidate, discretizer: {kind: hashing, num_bins: 4, output_bits: 6}}
  - {name: hour, kind: continuous, side: candidate, transform: z_score, default: 12.0}
  - {name: rate, kind: continuous, side: candidate, keep_value: false, discretizer: {kind: percentile, num_bins: 4}}
  - {name: taste, kind: vector, side: user, dim: 2}
  - {name: image, kind: vector, side: candidate, dim: 3}
labels:
  - {name: click, kind: binary}
  - {name: watch_time, kind: nonnegative}
"""
VOCABULARIES = {
    "country": ["nl", "de", "fr"],
    "interests": ["cats", "dogs", "maps", "tea"],
    "tweet": [101, 7, 2**40, 33],
    "topics": ["cats", "dogs", "news"],
}
# Two points of one x, and flat between 0.485 and 0.53.
ISOTONIC = {"click": {"x": [0.05, 0.2, 0.2, 0.485, 0.53, 0.97], "y": [0.0, 0.1, 0.15, 0.3, 0.3, 1.0]}}
USER = {"country": "nl", "user_id": 5, "interests": ["cats", "tea"], "age": 31.0, "taste": [0.5, -1.0]}
CANDIDATES = [
    {"tweet_id": 101, "topics": ["cats"], "author": "ann", "likes": 3, "hour": 7.5, "rate": 0.1, "image": [1, 2, 3]},
    {"tweet_id": 33, "topics": [], "author": "bob", "likes": None, "rate": 0.9, "image": None},
    {"tweet_id": 999, "author": "ann", "likes": 1e6},
]


def write_features(folder: Path, text: str = FEATURES) -> Encoder:
    """The folder that `prepare` would write, without rows."""
    (folder / "vocab").mkdir(parents=True)
    (folder / "features.yaml").write_text(text, encoding="utf-8")
    config = load_config(FeatureConfig, folder / "features.yaml", environment={})
    names = [str(feature.name) for feature in config.features if getattr(feature, "vocabulary", None) is not None]
    for name in names:
        values = VOCABULARIES[name]
        columns = {"value": values, "index": range(2, 2 + len(values)), "count": range(len(values), 0, -1)}
        pq.write_table(pa.table({k: pa.array(list(v)) for k, v in columns.items()}), folder / f"vocab/{name}.parquet")
    vocabularies = {name: Vocabulary.load(folder / f"vocab/{name}.parquet") for name in names}
    encoder = Encoder(config, vocabularies, {})
    encoder.spec.save(folder / "encoding.json")
    return encoder


def build(encoder: Encoder, model: dict, trained: bool = True, **loss):
    """A model; if trained, its weights are large enough that every feature shows in its scores."""
    settings = {
        "features_dir": "unused",
        "train_data": {"data_root": "unused", "global_batch_size": 4},
        "model": model,
        "loss": loss,
    }
    config = LightRankerConfig.model_validate(settings)
    boundaries = {"age": [0, 20, 30, 40, 90], "likes": [0, 1, 3, 100, 1e4], "rate": [0, 0.25, 0.5, 0.75, 1]}
    boundaries |= {"hour": [0.0, 6.0, 12.0]}
    places = torch.arange(len(encoder.spec.continuous), dtype=torch.float64)
    names = [feature.name for feature in encoder.spec.continuous]
    transforms = [feature.transform for feature in encoder.spec.continuous]
    calibration = Calibration(
        normalizer=Normalizer(names, transforms, 0.5 * places, 2.0 + places, 1.0 + places),
        boundaries={name: [float(edge) for edge in edges] for name, edges in boundaries.items()},
        fingerprint="tiny",
    )
    slots = build_slots(config, encoder.spec, calibration, "cpu")
    ranker = build_model(config, slots, calibration, torch.device("cpu"), local=True)
    if not trained:
        return ranker
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ranker.parameters():
            scale = 0.1 if parameter.ndim > 1 and parameter.shape[1] > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        if getattr(ranker, "tables", None) is not None:
            for table in ranker.tables.weights():
                table.copy_(torch.randn(table.shape, generator=generator))
    return ranker


def write_split(path: Path, ranker, num_rows: int = 400) -> CheckRows:
    """An encoded split whose labels follow the model's own scores, so that its AUC is far from one half."""
    from tml.projects.light_ranker.export.check import trainer_scores

    spec = ranker.spec
    rows = made_up_rows(spec, np.ones((1, len(spec.continuous)), np.float32), num_rows, seed=3)
    raw = trainer_scores(ranker, None, rows)["raw"]
    click = (np.random.default_rng(4).random(num_rows) < raw).astype(np.float32)
    columns = {}
    for features, values in ((spec.ids, rows.ids), (spec.continuous, rows.continuous), (spec.vectors, rows.vectors)):
        names = [name for feature in features for name in feature.columns()]
        columns |= {name: values[:, place] for place, name in enumerate(names)}
    columns |= {"y.click": click, "y.watch_time": click * 10, "w": np.ones(num_rows, np.float32)}
    pq.write_table(pa.table(columns, schema=pa.schema(list(spec.columns().items()))), path)
    return rows


def export(folder: Path, out: Path, ranker, **options) -> Path:
    """Export with the calibration of this module."""
    options.setdefault("isotonic", json.loads(json.dumps(ISOTONIC)))
    return export_ranker(ranker, out, features_dir=folder, **options)
