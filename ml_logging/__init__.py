"""Rank-aware logging and progress."""

from tml.ml_logging.progress import Progress
from tml.ml_logging.rank_logging import configure_logging, get_logger, rank, warn_once

__all__ = ["Progress", "configure_logging", "get_logger", "rank", "warn_once"]
