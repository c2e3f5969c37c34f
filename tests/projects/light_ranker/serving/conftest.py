from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.projects.light_ranker.export.tiny_ranker import build, export, write_features
from tml.projects.light_ranker.features.encoder import Encoder
from tml.projects.light_ranker.models.mlp import MlpRanker
from tml.projects.light_ranker.serving.scorer import Scorer


@dataclass
class Served:
    """An exported model and what it was made of."""

    folder: Path
    encoder: Encoder
    model: MlpRanker
    scorer: Scorer


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Served:
    features = tmp_path_factory.mktemp("served") / "features"
    encoder = write_features(features)
    model = build(encoder, {"mlp": {"hidden_sizes": [16, 8]}}, watch_time_label="watch_time")
    folder = export(features, features.parent / "export", model)
    return Served(folder, encoder, model, Scorer(folder, num_threads=1))
