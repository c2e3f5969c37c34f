"""A look at a run before it starts: files, columns, every row, memory. Trains nothing."""

from __future__ import annotations

from tml.core.planning.tables import groups_of, table_bytes
from tml.ml_logging import get_logger
from tml.projects.light_ranker.calibration import Sample
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.data.dataset import count_rows, data_files
from tml.projects.light_ranker.data.groups import require_groups_together
from tml.projects.light_ranker.features.spec import FeatureSpec
from tml.projects.light_ranker.models.objective import Objective
from tml.projects.light_ranker.models.tables import MlpSlots

logger = get_logger(__name__)


def check_run(config: LightRankerConfig, device_type: str) -> dict[str, float]:
    """Raise what a run would raise, in seconds; say what it will need.

    Returns:
        `rows.<split>`, and `table_bytes`: weights and optimizer state of the tables, on all ranks together.
    """
    spec = FeatureSpec.load(config.features_dir)
    Objective(config.loss, spec)
    found: dict[str, float] = {}
    sections = {"train": config.train_data, "validation": config.validation_data, "test": config.test_data}
    for name, section in sections.items():
        if section is not None:
            found[f"rows.{name}"] = count_rows(section, spec)
            logger.info("%s: %d rows, all values in range", name, found[f"rows.{name}"])
    if config.loss.ranking is not None:
        require_groups_together(data_files(config.train_data.data_root))
    Sample(config, spec)
    found["table_bytes"] = _table_bytes(config, spec, device_type)
    logger.info("tables and their optimizer state need %.1f MiB", found["table_bytes"] / 2**20)
    return found


def _table_bytes(config: LightRankerConfig, spec: FeatureSpec, device_type: str) -> float:
    if config.model.mlp is None:
        assert config.model.lolly_lr is not None
        return 4.0 * 2**config.model.lolly_lr.input_size_bits
    return float(table_bytes(groups_of(MlpSlots(spec, config.model.mlp, device_type).layout)))
