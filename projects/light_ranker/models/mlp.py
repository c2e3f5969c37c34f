"""The light ranker's network: embeddings and numbers -> hidden layers -> a click logit and a watch time.

Letters: `B` rows, `T` table slots, `S` id slots, `D` embedding dim, `C` continuous features, `V` values of dense
vectors, `X` columns of the first layer's input.

The input's columns are: an embedding for each own id feature (several slots pooled), for each binned feature and for
each pretrained feature; then the numbers (see `DenseInputs`); then the products of a dot interaction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tml.common.modules import dense_kernel
from tml.common.modules.dense_blocks import CrossNetwork
from tml.common.modules.embedding_tables import LocalTables, ShardedTables
from tml.common.profiling import phase
from tml.projects.light_ranker.calibration import Calibration
from tml.projects.light_ranker.config import MlpConfig
from tml.projects.light_ranker.data.batch import RankerBatch
from tml.projects.light_ranker.features.spec import ContinuousFeature, FeatureSpec, IdFeature, Side
from tml.projects.light_ranker.models.bins import Bins
from tml.projects.light_ranker.models.inputs import DenseInputs
from tml.projects.light_ranker.models.interactions import (
    DotProducts,
    FieldWeightedProducts,
    Interaction,
    build_interaction,
)
from tml.projects.light_ranker.models.join import join_columns
from tml.projects.light_ranker.models.objective import Objective
from tml.projects.light_ranker.models.pretrained import has_sparse_gradients
from tml.projects.light_ranker.models.tables import MlpSlots, slot_slices

CLICK, WATCH_TIME = "click", "watch_time"


class InputPart(NamedTuple):
    """Columns of the first layer's input that belong to one feature; side `both` for products of features."""

    name: str
    side: Side | str
    columns: slice


class RankerHead(nn.Module):
    """All of the network but its tables: torchrec's pipeline traces the look-up and leaves the head alone.

    Args:
        slots: what the looked-up rows are.
        config: the `model.mlp` section.
        objective: turns predictions into a loss.
        calibration: scales of the numbers, boundaries of their bins.
        pretrained: rows `[num_rows, D']` of each pretrained feature.
    """

    def __init__(
        self,
        slots: MlpSlots,
        config: MlpConfig,
        objective: Objective,
        calibration: Calibration,
        pretrained: dict[str, Tensor],
    ) -> None:
        super().__init__()
        spec = slots.spec
        self.spec, self.slots, self.objective = spec, slots, objective
        self.embedding_dim = config.embedding_dim
        self.inputs = DenseInputs(spec, calibration.normalizer, calibration.boundaries)
        self.pretrained = nn.ModuleDict(
            {feature.name: _pretrained_table(feature, pretrained[feature.name]) for feature in slots.pretrained}
        )
        self._blocks = _Blocks(slots)
        self._pretrained_slots = slot_slices(slots.pretrained)
        self._mask_slots = dict(zip((f.name for f in spec.ids), slot_slices(spec.ids), strict=True))
        num_embeddings = len(slots.own) + len(slots.binned)
        width = num_embeddings * self.embedding_dim + self.inputs.num_columns
        width += sum(rows.shape[1] for rows in pretrained.values())
        names = [CLICK, WATCH_TIME] if objective.has_watch_time and config.heads == "separate" else [CLICK]
        self.interaction = build_interaction(
            config.interaction, num_embeddings, self.embedding_dim, self.inputs.num_columns, width, names
        )
        self.num_columns = width + (self.interaction.output_size if isinstance(self.interaction, DotProducts) else 0)
        self.drop = nn.Dropout1d(config.embedding_dropout) if config.embedding_dropout else nn.Identity()
        self.num_wide = len(names) if config.wide else 0
        self._has_dropout = config.dropout > 0
        self.hidden = _hidden_layers(self.num_columns, config.hidden_sizes, self.num_wide, config.dropout)
        if self.num_wide:
            _init_wide(self.hidden[0], self.num_wide, num_embeddings, self.embedding_dim)  # type: ignore[arg-type]
        self.heads = nn.ModuleDict({name: nn.Linear(config.hidden_sizes[-1], 1) for name in names})

    def forward(self, rows: Tensor | None, batch: RankerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and outputs of a batch, see `Objective`; `rows` are those of `batch.nodes`, `[B * T, D]`."""
        size = len(batch.weight)
        if rows is None:
            rows = batch.continuous.new_empty(size, 0, self.embedding_dim)
        with phase("lookup"):
            pretrained = [self.pretrained[f.name](ids) for f, ids in self._pretrained_ids(batch.ids)]
        with phase("scores"):
            predictions = self.forward_rows(
                rows.view(size, -1, self.embedding_dim), batch.slot_mask, batch.continuous, batch.vectors, pretrained
            )
        with phase("loss"):
            return self.objective(predictions, batch)

    def forward_rows(
        self,
        rows: Tensor,
        slot_mask: Tensor,
        continuous: Tensor,
        vectors: Tensor,
        pretrained: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Predictions from looked-up rows, in plain torch.

        Args:
            rows: `[B, T, D]`, own features' slots in their order, then bins.
            slot_mask: `[B, S]`, or `[B, 0]` without features of several slots.
            continuous: `[B, C]`, NaN where missing.
            vectors: `[B, V]`.
            pretrained: `[B, num_slots, D']` for each pretrained feature.

        Returns:
            `click` logits and, if it is learnt, `watch_time`, float32 `[B]` each.
        """
        embeddings = self.drop(self._blocks.pool(rows, slot_mask, self._mask_slots))
        others = [
            _pooled(feature, values, slot_mask, self._mask_slots)
            for feature, values in zip(self.slots.pretrained, pretrained or [], strict=True)
        ]
        numbers = self.inputs(continuous, vectors)
        parts = [embeddings.flatten(1), *others, numbers]
        if isinstance(self.interaction, DotProducts):
            parts.append(self.interaction(embeddings, numbers))
        if isinstance(self.interaction, CrossNetwork):
            parts = [self.interaction(join_columns(parts))]
        found = dict(zip(self.heads, self._outputs(parts).unbind(1), strict=True))
        if isinstance(self.interaction, FieldWeightedProducts):
            products = self.interaction(join_columns(parts[:1]))
            found = {name: found[name] + factor * products for name, factor in self.interaction.factors.items()}
        if self.objective.has_watch_time and WATCH_TIME not in found:
            found[WATCH_TIME] = found[CLICK]
        return found

    def _outputs(self, parts: list[Tensor]) -> Tensor:
        """What hidden layers and linear part make of the input's parts: float32 `[B, heads]`, also under autocast."""
        heads = [head for head in self.heads.values() if isinstance(head, nn.Linear)]
        weight, bias = torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
        linear = [layer for layer in self.hidden if isinstance(layer, nn.Linear)]
        parameters = [(layer.weight, layer.bias) for layer in linear] + [(weight, bias)]
        if not self._has_dropout and dense_kernel.can_run(parts, parameters):
            return dense_kernel.rectified_layers(parts, parameters, is_wide=self.num_wide > 0)
        first, *others = self.hidden
        hidden, wide = split_wide(first(join_columns(parts)), self.num_wide)
        for layer in others:
            hidden = layer(hidden)
        # bfloat16 would leave a logit two or three digits.
        with torch.autocast(hidden.device.type, enabled=False):
            outputs = nn.functional.linear(hidden.to(weight.dtype), weight, bias)
            return outputs if wide is None else outputs + wide

    def input_layout(self) -> list[InputPart]:
        """Whose each column of the input is, in order."""
        dim = self.embedding_dim
        embedded: list[IdFeature | ContinuousFeature] = [*self.slots.own, *self.slots.binned]
        widths: list[tuple[str, Side | str, int]] = [(f.name, f.side, dim) for f in embedded]
        widths += [(f.name, f.side, _width_of(self.pretrained[f.name])) for f in self.slots.pretrained]
        sides = {feature.name: feature.side for feature in self.spec.features}
        widths += [(name, sides[name], 1) for name in self.inputs.names]
        if isinstance(self.interaction, DotProducts):
            widths.append(("#interaction", "both", self.interaction.output_size))
        parts, start = [], 0
        for name, side, width in widths:
            parts.append(InputPart(name, side, slice(start, start + width)))
            start += width
        return parts

    def dense_tensors(self) -> dict[str, Tensor]:
        """Live parameters by their name in a checkpoint; frozen embeddings are not among them."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def _pretrained_ids(self, ids: Tensor) -> list[tuple[IdFeature, Tensor]]:
        return [(f, ids[:, part]) for f, part in zip(self.slots.pretrained, self._pretrained_slots, strict=True)]


class MlpRanker(nn.Module):
    """Tables and head.

    Args:
        tables: `LocalTables` or `ShardedTables` of `slots.layout`; None if no feature has a table.
        head: what predicts.
    """

    def __init__(self, tables: LocalTables | ShardedTables | None, head: RankerHead) -> None:
        super().__init__()
        self.tables = tables
        self.head = head

    def forward(self, batch: RankerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and outputs of a batch, see `Objective`."""
        rows = None if self.tables is None else self.tables(batch.nodes)
        return self.head(rows, batch)

    def dense_tensors(self) -> dict[str, Tensor]:
        """Live parameters outside the tables, by their name in a checkpoint."""
        return self.head.dense_tensors()

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold of an unsharded model, live; see `ShardedModel` for a sharded one."""
        tables = self.tables.checkpoint_tensors() if isinstance(self.tables, LocalTables) else {}
        return tables | self.dense_tensors()

    @property
    def spec(self) -> FeatureSpec:
        """The features."""
        return self.head.spec

    @property
    def slots(self) -> MlpSlots:
        """Where the features' ids lie."""
        return self.head.slots

    @property
    def bins(self) -> Bins | None:
        """What turns numbers into physical rows, None if no feature is binned."""
        return self.head.slots.bins

    @property
    def inputs(self) -> DenseInputs:
        """Numbers and vectors as the first layer takes them."""
        return self.head.inputs

    @property
    def hidden(self) -> nn.Sequential:
        """The hidden layers."""
        return self.head.hidden

    @property
    def interaction(self) -> Interaction | None:
        """Products of features, if any."""
        return self.head.interaction

    @property
    def heads(self) -> nn.ModuleDict:
        """Linear layers by output."""
        return self.head.heads

    @property
    def pretrained(self) -> nn.ModuleDict:
        """`nn.Embedding` of each pretrained feature."""
        return self.head.pretrained

    def input_layout(self) -> list[InputPart]:
        """Whose each column of the first layer's input is, in order."""
        return self.head.input_layout()

    def forward_rows(
        self,
        rows: Tensor,
        slot_mask: Tensor,
        continuous: Tensor,
        vectors: Tensor,
        pretrained: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Predictions from looked-up rows, see `RankerHead.forward_rows`."""
        return self.head.forward_rows(rows, slot_mask, continuous, vectors, pretrained)


class _Blocks:
    """Which rows of an example belong to which feature: runs of single-valued features need no work at all."""

    def __init__(self, slots: MlpSlots) -> None:
        self._features: list[IdFeature | None] = []
        self._slices: list[slice] = []
        start = 0
        widths = [(feature.num_slots, feature) for feature in slots.own] + [(1, None)] * len(slots.binned)
        for width, feature in widths:
            if width > 1:
                self._features.append(feature)
                self._slices.append(slice(start, start + width))
            elif self._features and self._features[-1] is None:
                self._slices[-1] = slice(self._slices[-1].start, start + 1)
            else:
                self._features.append(None)
                self._slices.append(slice(start, start + 1))
            start += width
        self._is_flat = all(feature is None for feature in self._features)

    def pool(self, rows: Tensor, slot_mask: Tensor, mask_slots: dict[str, slice]) -> Tensor:
        """`[B, F, D]` from `[B, T, D]`."""
        if self._is_flat:
            return rows
        parts = []
        for feature, part in zip(self._features, self._slices, strict=True):
            values = rows[:, part]
            parts.append(
                values if feature is None else _masked_pool(feature, values, slot_mask, mask_slots).unsqueeze(1)
            )
        return torch.cat(parts, dim=1)


def _pooled(feature: IdFeature, values: Tensor, slot_mask: Tensor, mask_slots: dict[str, slice]) -> Tensor:
    if feature.num_slots == 1:
        return values.squeeze(1)
    return _masked_pool(feature, values, slot_mask, mask_slots)


def _masked_pool(feature: IdFeature, values: Tensor, slot_mask: Tensor, mask_slots: dict[str, slice]) -> Tensor:
    mask = slot_mask[:, mask_slots[feature.name]]
    total = (values * mask.unsqueeze(2)).sum(1)
    return total if feature.pooling == "sum" else total / mask.sum(1, keepdim=True).clamp_min(1.0)


def _pretrained_table(feature: IdFeature, rows: Tensor) -> nn.Embedding:
    return nn.Embedding.from_pretrained(
        rows, freeze=not feature.trainable, sparse=feature.trainable and has_sparse_gradients()
    )


def _width_of(table: nn.Module) -> int:
    assert isinstance(table, nn.Embedding)
    return table.embedding_dim


def split_wide(first: Tensor, num_wide: int) -> tuple[Tensor, Tensor | None]:
    """The first layer's sums `[B, H + num_wide]` as those of its hidden units, and those that go to the outputs."""
    if not num_wide:
        return first, None
    return first[:, :-num_wide], first[:, -num_wide:]


def _hidden_layers(num_columns: int, sizes: list[int], num_wide: int, dropout: float) -> nn.Sequential:
    """`num_wide` units more in the first layer are the linear part: one matrix product for both."""
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [nn.Linear(num_columns, size if layers else size + num_wide), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        num_columns = size
    return nn.Sequential(*layers)


@torch.no_grad()
def _init_wide(first: nn.Linear, num_wide: int, num_embeddings: int, dim: int) -> None:
    """Output `k` starts as the sum of value `k` of all embeddings, so that each has a value of its own to move; small
    random weights would pass on next to nothing of the output's error."""
    first.weight[-num_wide:] = 0.0
    first.bias[-num_wide:] = 0.0
    for output in range(num_wide):
        first.weight[first.out_features - num_wide + output, output : num_embeddings * dim : dim] = 1.0
