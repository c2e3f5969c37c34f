"""Export: from a trained ranker to a folder that serves."""

from tml.projects.light_ranker.export.ranker import export_ranker

__all__ = ["export_ranker"]
