"""The baselines of a run's config: what a model has to beat on the same edges, by the same evaluator."""

from __future__ import annotations

from tml.common.errors import ConfigError
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data.dataset import read_edges
from tml.projects.twhin.data.edges import EdgeSchema, concatenate
from tml.projects.twhin.evaluation import LinkPredictionEvaluator, popularity_baseline, random_baseline
from tml.projects.twhin.metrics import ranking_options
from tml.projects.twhin.models.relations import RelationSpec


def baselines_of_config(config: TwhinConfig, split: str, max_edges: int | None = None) -> dict[str, dict[str, float]]:
    """Ranking by training degree, and by chance (where all candidates are ranked).

    Args:
        config: the whole config; its training edges are held in memory.
        split: `test` or `validation`.
        max_edges: rank that many, drawn by the seed; all if None.

    Returns:
        `{"popularity": metrics, "random": metrics}`.

    Raises:
        ConfigError: there is no such split.
        DataError: edges are missing or out of range.
    """
    sections = {"validation": config.validation_data, "test": config.test_data}
    if sections.get(split) is None:
        there = [name for name, section in sections.items() if section is not None]
        raise ConfigError("the config has no such split", where="split", value=split, limit=f"one of {there}")
    relations = [RelationSpec(r.name, r.lhs, r.rhs, r.operator) for r in config.model.relations]
    num_rows = {table.name: table.num_embeddings for table in config.model.embeddings.tables}
    schema = EdgeSchema(relations, num_rows)
    train = read_edges(config.train_data, schema)
    edges = {name: read_edges(section, schema) for name, section in sections.items() if section is not None}
    evaluator = LinkPredictionEvaluator(concatenate(train, *edges.values()), ranking_options(config, max_edges))
    found = {
        "popularity": popularity_baseline(
            train, edges[split], relations=relations, num_rows=num_rows, evaluator=evaluator
        )
    }
    if config.evaluation.num_candidates is None:
        found["random"] = random_baseline(edges[split], relations=relations, num_rows=num_rows, evaluator=evaluator)
    return found
