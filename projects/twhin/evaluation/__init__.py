"""Link prediction: ranks of true nodes among all candidates, and baselines to hold them against."""

from tml.projects.twhin.evaluation.baselines import PopularityScorer, popularity_baseline, random_baseline
from tml.projects.twhin.evaluation.evaluator import LinkPredictionEvaluator, RankingOptions, choose_edges
from tml.projects.twhin.evaluation.known_edges import KnownEdges
from tml.projects.twhin.evaluation.sources import DictSource, EmbeddingSource, IdSource, Scorer

__all__ = [
    "DictSource",
    "EmbeddingSource",
    "IdSource",
    "KnownEdges",
    "LinkPredictionEvaluator",
    "PopularityScorer",
    "RankingOptions",
    "Scorer",
    "choose_edges",
    "popularity_baseline",
    "random_baseline",
]
