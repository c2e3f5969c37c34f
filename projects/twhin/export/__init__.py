"""Export: from a checkpoint, or live tables, to a model folder."""

from tml.projects.twhin.export.checkpoint import export_from_checkpoint
from tml.projects.twhin.export.model import export_model

__all__ = ["export_from_checkpoint", "export_model"]
