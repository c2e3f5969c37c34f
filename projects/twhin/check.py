"""A look at a run before it starts: files, schema, ids of every edge, vocabulary, memory. Trains nothing."""

from __future__ import annotations

from tml.core.planning.tables import table_bytes
from tml.ml_logging import get_logger
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data.dataset import edge_blocks
from tml.projects.twhin.data.edges import EdgeSchema
from tml.projects.twhin.tables import table_layout, vocab_hashes

logger = get_logger(__name__)


def check_run(config: TwhinConfig, schema: EdgeSchema, device_type: str, num_ranks: int) -> dict[str, float]:
    """Raise what a run would raise, in seconds; say what it will need.

    Returns:
        `edges.<split>`, and `table_bytes_per_rank`: weights and optimizer state.
    """
    found: dict[str, float] = {}
    sections = {"train": config.train_data, "validation": config.validation_data, "test": config.test_data}
    for name, section in sections.items():
        if section is not None:
            found[f"edges.{name}"] = sum(len(edges) for edges in edge_blocks(section, schema))
            logger.info("%s: %d edges, all ids in range", name, found[f"edges.{name}"])
    if vocab_hashes(config):
        logger.info("vocabularies fit their tables")
    found["table_bytes_per_rank"] = table_bytes(table_layout(config.model, device_type).groups) / num_ranks
    logger.info("tables and their optimizer state need %.1f MiB on each of %d ranks",
                found["table_bytes_per_rank"] / 2**20, num_ranks)  # fmt: skip
    return found
