"""A serving graph in 8 bits: tables, the candidate's columns and the hidden layers.

Letters: `T` table slots of a side, `D` embedding dim, `K` columns.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tml.common.errors import ConfigError
from tml.common.modules.calibrators import Isotonic
from tml.projects.light_ranker.export.byte_layers import LARGEST, ByteLayers
from tml.projects.light_ranker.export.graph import TABLE, HiddenLayers, MlpGraph, MlpSide, ServingGraph, SideColumns
from tml.projects.light_ranker.export.numbers import ByteNumbers
from tml.projects.light_ranker.export.rows import CheckRows
from tml.projects.light_ranker.export.sides import SideInput
from tml.projects.light_ranker.export.tables import RowSteps
from tml.projects.light_ranker.models.build import Ranker
from tml.projects.light_ranker.models.mlp import MlpRanker


def byte_graph(model: Ranker, isotonic: Isotonic | None, samples: Iterable[CheckRows]) -> MlpGraph:
    """The graph of a model in 8 bits.

    Tables have a step for each feature and column, by their largest value. A layer's columns have one by their largest
    value over some rows. Products of features (dot, cross, fwfm), lists and the user's half are computed in floats.

    Args:
        model: trained.
        isotonic: calibration of the click's probability, if any.
        samples: rows such as will be served; larger values than theirs will be cut off.

    Raises:
        ConfigError: the model has no layers, or there are no rows.
        NonFiniteError: an embedding is NaN or infinite.
    """
    if not isinstance(model, MlpRanker):
        raise ConfigError(
            "a model without layers has nothing to quantise", where="export.int8", fix="leave int8 out for lolly_lr"
        )
    graph = MlpGraph(model, isotonic)
    largest = largest_values(graph, samples)
    if not largest:
        raise ConfigError(
            "there are no rows by which to choose the bytes' ranges", where="export.int8",
            fix="name validation_data or test_data with rows in the config, or leave int8 out",
        )  # fmt: skip
    inputs, *outputs = largest
    starts = [] if model.slots.layout is None else sorted(model.slots.layout.offset.values())
    graph.keep_bytes(
        {name: RowSteps.of(name, rows, starts if name == TABLE else [0]) for name, rows in graph.tables.items()}
    )
    for reader in (graph.user, graph.candidate):
        reader.read_bytes(graph.row_steps)
    layers, steps = graph.layers, inputs / LARGEST
    assert isinstance(layers, HiddenLayers)
    if graph.candidate.is_flat and not graph.has_products:
        side = ByteSide(graph.candidate, inputs)
        graph.candidate, steps = side, side.steps  # type: ignore[assignment]
    graph.layers = ByteLayers(layers.weight, list(layers.others), layers.num_wide, steps, outputs)  # type: ignore[assignment,arg-type]
    return graph


@torch.no_grad()
def largest_values(graph: MlpGraph, samples: Iterable[CheckRows]) -> list[Tensor]:
    """The largest absolute value of each column of each layer's input over rows, `[K]` each; 1 where all are 0."""
    found: list[Tensor] = []

    def look(layers: nn.Module, given: tuple[Tensor, list[Tensor]]) -> None:
        inputs, _ = layers.inputs(*given)  # type: ignore[operator]
        largest = [values.abs().amax(0) for values in inputs[:-1]]
        found[:] = [torch.maximum(*both) for both in zip(found, largest, strict=True)] if found else largest

    hook = graph.layers.register_forward_pre_hook(look)
    graph.with_tables().eval()
    for rows in samples:
        given = rows.inputs("user") | rows.inputs("candidate")
        graph(**{name: torch.from_numpy(given[name]) for name in graph.inputs})
    hook.remove()
    return [torch.where(values > 0, values, 1.0) for values in found]


class ByteSide(nn.Module):
    """A side whose columns are bytes from look-up to layer.

    Args:
        side: without lists.
        largest: `[K]`, of its columns.

    Attributes:
        steps: `[K]`, what a step of each column is worth.
    """

    def __init__(self, side: MlpSide, largest: Tensor) -> None:
        super().__init__()
        self.side = side
        floats = [side.floats, *side.other_floats] if side.lookup.has_rows else [*side.other_floats]
        parts = [part.steps.flatten() for part in floats]  # type: ignore[operator,union-attr]
        self.numbers = ByteNumbers(side.numbers, largest[sum(map(len, parts)) :])
        self.steps = torch.cat([*parts, self.numbers.steps])

    steps: Tensor

    def forward(self, graph: ServingGraph, given: SideInput) -> SideColumns:
        """The columns, uint8."""
        rows = self.side.lookup(getattr(graph, TABLE, None), given)
        embedded = [] if rows is None else [rows.flatten(1)]
        others = [self.side.other_rows(graph, given, place).squeeze(1) for place in range(len(self.side.others))]
        numbers = self.numbers(given.continuous, given.vectors)
        return SideColumns(None, [*embedded, *others, *numbers], given.continuous[:, :0])
