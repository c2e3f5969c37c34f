"""Export of a training run's checkpoint, on one process and with memory for a block of rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tml.common.checkpointing import Checkpoint, CheckpointManager
from tml.common.errors import CheckpointError
from tml.core.held_out import metrics_path
from tml.projects.twhin.config import ModelConfig
from tml.projects.twhin.export.model import export_model
from tml.projects.twhin.export.tables import rows_per_block
from tml.projects.twhin.models.relations import RelationScorer, RelationSpec
from tml.projects.twhin.tables import table_layout, vocab_fingerprint

Step = int | Literal["best", "latest"]


def export_from_checkpoint(
    save_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    step: Step | None = None,
    vocab_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    memory_map: bool = False,
) -> Path:
    """Export a step of a training run, on one process, with memory for a block of rows.

    Args:
        save_dir: the run's checkpoint directory.
        out_dir: as in `export_model`, with `overwrite` and `memory_map`.
        step: which; None takes the best step if one is marked, else the latest.
        vocab_dir: overrides the config's.

    Returns:
        The folder.

    Raises:
        CheckpointError: there is no such step, it is damaged, or it holds no TwHIN model.
        DataError, NonFiniteError: as in `export_model`.
    """
    step, best = _choose_step(Path(save_dir), step)
    checkpoint = Checkpoint.open(save_dir, step)
    extra = checkpoint.extra()
    model = _model_config(extra, checkpoint.folder)
    fingerprints = extra.get("fingerprints", {})
    return export_model(
        out_dir,
        tables=_tables_of_groups(checkpoint, table_layout(model, "meta").to_dict()),
        scorer=_scorer(model, checkpoint),
        vocab_dir=vocab_dir or extra["config"].get("vocab_dir"),
        model_card=_card(checkpoint, extra) | best,
        overwrite=overwrite,
        memory_map=memory_map,
        id_hashes={table.name: fingerprints.get(vocab_fingerprint(table.name)) for table in model.embeddings.tables},
    )


def _choose_step(save_dir: Path, step: Step | None) -> tuple[int | None, dict[str, Any]]:
    """The step number (None for the newest sound one), and what is known of it as the best one."""
    if not save_dir.is_dir():
        raise CheckpointError("no such folder", where=save_dir, fix="give the save_dir of a training run")
    with CheckpointManager(save_dir, max_to_keep=None, lock=False) as manager:
        best = manager.best_record()
    if step == "best" and best is None:
        raise CheckpointError(
            "no step is marked as the best", where=save_dir, value=step, limit="a run with evaluation",
            fix="use --step latest, or a number",
        )  # fmt: skip
    if best is None or step == "latest":
        return (step if isinstance(step, int) else None), {}
    number = step if isinstance(step, int) else best.step
    return number, {"best": {"metric": best.metric, "value": best.value}} if number == best.step else {}


def _model_config(extra: Mapping[str, Any], where: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(extra["config"]["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            "the checkpoint does not describe a TwHIN model", where=where, value=str(error),
            limit="extra data with config.model", fix="give the save_dir of a TwHIN run of this version",
        ) from error  # fmt: skip


def _scorer(model: ModelConfig, checkpoint: Checkpoint) -> RelationScorer:
    relations = [RelationSpec(r.name, r.lhs, r.rhs, r.operator) for r in model.relations]
    scorer = RelationScorer(
        relations, model.embeddings.tables[0].embedding_dim, model.comparator, model.reciprocal_relations
    )
    weight = checkpoint.load("relations.weight")
    if weight.shape != scorer.weight.shape:
        raise CheckpointError(
            "relations in the checkpoint do not match its config",
            where=f"{checkpoint.folder}, relations.weight",
            value=list(weight.shape),
            limit=list(scorer.weight.shape),
        )
    with torch.no_grad():
        scorer.weight.copy_(weight)
    return scorer


def _card(checkpoint: Checkpoint, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What the run knows of this step."""
    metrics = {"validation": extra.get("metrics") or {}}
    report = Path(metrics_path(str(checkpoint.folder.parent), "test"))
    if report.is_file():
        tested = json.loads(report.read_text(encoding="utf-8"))
        # The test edges are ranked once, at one step; their figures say nothing of another.
        if tested["step"] == checkpoint.step:
            metrics["test"] = tested["metrics"]
    record = {"world_size": checkpoint.record.world_size, "saved_at": checkpoint.record.saved_at}
    return {
        "step": checkpoint.step,
        "checkpoint": record,
        "metrics": {split: values for split, values in metrics.items() if values},
        "data": {"fingerprints": extra.get("fingerprints", {}), "num_examples": extra.get("num_examples")},
        "config": extra["config"],
    }


def _tables_of_groups(checkpoint: Checkpoint, layout: Mapping[str, Mapping[str, Any]]) -> dict[str, Iterator[Tensor]]:
    """The rows of each named table; read in the order of the dict, each physical table is read once."""
    readers: dict[str, _RowReader] = {}
    tables = {}
    for name, place in sorted(layout.items(), key=lambda item: (item[1]["group"], item[1]["offset"])):
        group = place["group"]
        if group not in readers:
            tensor = f"tables.{group}.weight"
            dim = checkpoint.shapes[tensor][0][1] if tensor in checkpoint.shapes else 1
            readers[group] = _RowReader(checkpoint.row_blocks(tensor, rows_per_block(dim)))
        tables[name] = readers[group].rows(place["offset"], place["num_embeddings"])
    return tables


class _RowReader:
    """Cuts a stream of row blocks into ranges of rows that are asked for in ascending order."""

    def __init__(self, blocks: Iterator[Tensor]) -> None:
        self._blocks, self._row, self._rest = blocks, 0, torch.empty(0)

    def rows(self, start: int, count: int) -> Iterator[Tensor]:
        """Blocks of rows `[start, start + count)`.

        Raises:
            CheckpointError: the stream ends before.
        """
        stop = start + count
        while self._row < stop:
            if len(self._rest) == 0:
                self._rest = self._next_block(stop)
            length = min(len(self._rest), (start if self._row < start else stop) - self._row)
            part, self._rest = self._rest[:length], self._rest[length:]
            self._row += length
            if self._row > start:
                yield part

    def _next_block(self, stop: int) -> Tensor:
        block = next(self._blocks, None)
        if block is None:
            raise CheckpointError(
                "a table in the checkpoint is shorter than its layout says", value=self._row, limit=f"{stop} rows"
            )
        return block
