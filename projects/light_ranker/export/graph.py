"""The graph that serves a ranker: what a request says of the user is computed once, not for every candidate.

The first hidden layer is linear, `W x + b`, and its input's columns belong to the user or to the candidate, so
`W x + b = (W_user x_user + b) + W_candidate x_candidate`. The bracket has one row per user.

Letters: `U` users, one or as many as candidates (each row then has its own), `N` candidates, `X` columns of a side.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tml.common.errors import DataError
from tml.common.modules.calibrators import Isotonic
from tml.common.modules.dense_blocks import CrossNetwork
from tml.common.modules.embedding_tables import LocalTables
from tml.projects.light_ranker.export.byte_layers import FromBytes
from tml.projects.light_ranker.export.interactions import SplitDot, reordered_cross
from tml.projects.light_ranker.export.numbers import GraphNumbers
from tml.projects.light_ranker.export.outputs import GraphIsotonic, Seconds
from tml.projects.light_ranker.export.sides import SideInput, SideLookup, SidePooling, bins_of, pooled, slots_of
from tml.projects.light_ranker.export.tables import RowSteps
from tml.projects.light_ranker.features.spec import ContinuousFeature, FeatureSpec, IdFeature, Side
from tml.projects.light_ranker.models.interactions import DotProducts, FieldWeightedProducts
from tml.projects.light_ranker.models.mlp import CLICK, WATCH_TIME, MlpRanker, split_wide

SIDES: tuple[Side, ...] = ("user", "candidate")
TABLE = "table"
PROBABILITY, LOGIT = "probability", "logit"


class ServingGraph(nn.Module):
    """Both sides' encoded features in, scores out; subclasses say what lies between.

    Args:
        spec: the features.
        isotonic: calibration of the click's probability, if any.
        takes_vectors: whether the model uses vectors.

    Attributes:
        inputs: type and columns of each input; a side has no input of a kind of which it has no features.
        outputs: names of the outputs.
        tables: the real tables by the name of their stand-in.
        row_steps: what a step of each row's columns is worth, if the tables are to be bytes.
    """

    def __init__(self, spec: FeatureSpec, isotonic: Isotonic | None, takes_vectors: bool = True) -> None:
        super().__init__()
        self.inputs: dict[str, tuple[torch.dtype, int]] = {}
        for side in SIDES:
            part = spec.of_side(side)
            columns = {
                "ids": (torch.int64, part.num_slots),
                "continuous": (torch.float32, len(part.continuous)),
                "vectors": (torch.float32, part.num_vector_values if takes_vectors else 0),
            }
            self.inputs |= {f"{side}_{kind}": size for kind, size in columns.items() if size[1]}
        if not any(name.startswith("candidate_") for name in self.inputs):
            raise DataError(
                "the model knows nothing of candidates, so all would score alike", where="features.yaml",
                limit="at least one feature with side: candidate", fix="set the side of each feature and train again",
            )  # fmt: skip
        self.outputs = [PROBABILITY, LOGIT]
        self.tables: dict[str, Tensor] = {}
        self.row_steps: dict[str, RowSteps] = {}
        self.isotonic = None if isotonic is None else GraphIsotonic(isotonic)

    def add_table(self, name: str, rows: Tensor) -> None:
        """Keep the real rows `[R, D]` aside; the graph is recorded with a small stand-in."""
        self.tables[name] = rows
        self.register_buffer(name, _stand_in(len(self.tables), rows.shape[1], torch.float32))

    def keep_bytes(self, steps: dict[str, RowSteps]) -> None:
        """Let tables be bytes, in these steps; stand-ins take the place of real ones."""
        self.row_steps = steps
        for number, (name, rows) in enumerate(self.tables.items()):
            setattr(self, name, _stand_in(number, rows.shape[1], torch.uint8))

    def with_tables(self) -> ServingGraph:
        """Put the real tables in place of the stand-ins, to run the graph in torch."""
        for name, rows in self.tables.items():
            real = rows.detach().float()
            setattr(self, name, self.row_steps[name].to_bytes(real) if name in self.row_steps else real)
        return self

    def probability(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities of logits `[N]`."""
        return logits.sigmoid() if self.isotonic is None else self.isotonic(logits.sigmoid())

    def forward(
        self,
        user_ids: Tensor | None = None,
        user_continuous: Tensor | None = None,
        user_vectors: Tensor | None = None,
        candidate_ids: Tensor | None = None,
        candidate_continuous: Tensor | None = None,
        candidate_vectors: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """`outputs` `[N]` each, from the `inputs`."""
        user = _side_input(user_ids, user_continuous, user_vectors)
        candidate = _side_input(candidate_ids, candidate_continuous, candidate_vectors)
        assert candidate is not None
        return self.scores(user, candidate)

    def scores(self, user: SideInput | None, candidate: SideInput) -> tuple[Tensor, ...]:
        """What `forward` answers."""
        raise NotImplementedError


class MlpGraph(ServingGraph):
    """Serves an `MlpRanker`.

    Args:
        model: trained, its whole tables on this process.
        isotonic: calibration of the click's probability, if any.
    """

    user_weight: Tensor
    bias: Tensor
    project_user: Tensor
    project_candidate: Tensor
    user_pair_weights: Tensor
    candidate_pair_weights: Tensor
    mixed_pair_weights: Tensor
    dot: SplitDot | None
    cross: CrossNetwork | None
    fwfm: FieldWeightedProducts | None
    project: nn.Linear | None

    def __init__(self, model: MlpRanker, isotonic: Isotonic | None) -> None:
        super().__init__(model.spec, isotonic)
        if isinstance(model.tables, LocalTables):
            self.add_table(TABLE, model.tables.weights()[0])
        for name, table in model.pretrained.items():
            self.add_table(_pretrained_name(model, name), table.weight)  # type: ignore[arg-type]
        self.user = MlpSide(model, "user")
        self.candidate = MlpSide(model, "candidate")
        first, *behind = (layer for layer in model.hidden if isinstance(layer, nn.Linear))
        order = self._take_interaction(model)
        weight = first.weight.detach()
        columns = order["candidate"]
        if self.cross is not None:
            columns = order["user"] + columns
        else:
            self.register_buffer("user_weight", weight[:, order["user"]].clone())
        self.register_buffer("bias", first.bias.detach().clone())
        self.layers = HiddenLayers(weight[:, columns].clone(), behind, model.head.num_wide)
        self.click_head = model.heads[CLICK]
        self.watch_head = model.heads[WATCH_TIME] if len(model.heads) > 1 else None
        objective = model.head.objective
        self.seconds = Seconds(objective.config.watch_time_loss == "log1p_mse") if objective.has_watch_time else None
        if self.seconds is not None:
            self.outputs.append(WATCH_TIME)

    def scores(self, user: SideInput | None, candidate: SideInput) -> tuple[Tensor, ...]:
        """Probabilities, logits and, if the model predicts them, watch times in seconds."""
        of_user = None if user is None else self.user(self, user)
        of_candidate = self.candidate(self, candidate)
        hidden, wide = self.layers(*self._first_sums(of_user, of_candidate))
        click = _head(self.click_head, hidden)
        watch = click if self.watch_head is None else _head(self.watch_head, hidden)
        if wide is not None:
            click = click + wide[:, 0]
            watch = click if self.watch_head is None else watch + wide[:, 1]
        if self.fwfm is not None:
            products = self._weighted_products(of_user, of_candidate)
            click = click + self.fwfm.factors[CLICK] * products
            watch = click if self.watch_head is None else watch + self.fwfm.factors[WATCH_TIME] * products
        found = (self.probability(click), click)
        return found if self.seconds is None else (*found, self.seconds(watch))

    @property
    def has_products(self) -> bool:
        """Whether the model multiplies features with each other."""
        return any(part is not None for part in (self.dot, self.cross, self.fwfm))

    def _first_sums(self, of_user: SideColumns | None, of_candidate: SideColumns) -> tuple[Tensor, list[Tensor]]:
        """What the first layer's sums begin with, `[U, H]`, and the columns that are still to be added."""
        base = self.bias.unsqueeze(0)
        if self.cross is not None:
            return base, [self._crossed(of_user, of_candidate)]
        products = self._products(of_user, of_candidate)
        user_columns = [*([] if of_user is None else of_user.columns), *products[0]]
        if user_columns:
            base = nn.functional.linear(torch.cat(user_columns, dim=1), self.user_weight, self.bias)
        return base, [*of_candidate.columns, *products[1]]

    def _products(self, user: SideColumns | None, candidate: SideColumns) -> tuple[list[Tensor], list[Tensor]]:
        """Products of the user's features alone, and all others."""
        if self.dot is None:
            return [], []
        embeddings = [] if candidate.embeddings is None else [candidate.embeddings]
        if self.project is not None:
            numbers = candidate.numbers @ self.project_candidate.T + self.project.bias
            if user is not None and user.numbers.shape[1]:
                numbers = numbers + user.numbers @ self.project_user.T
            embeddings.append(numbers.unsqueeze(1))
        of_user = None if user is None else user.embeddings
        own = [] if of_user is None or not self.dot.user_products else [self.dot.user(of_user)]
        return own, [self.dot.candidate(of_user, torch.cat(embeddings, dim=1))]

    def _weighted_products(self, user: SideColumns | None, candidate: SideColumns) -> Tensor:
        """`[N]`, or `[1]` if candidates have no embeddings: every product of two embeddings times its weight."""
        total = self.user_pair_weights.new_zeros(1)
        if user is not None and user.embeddings is not None:
            mixed = torch.matmul(self.user_pair_weights, user.embeddings)
            total = total + 0.5 * (mixed * user.embeddings).sum((1, 2))
        if candidate.embeddings is not None:
            mixed = 0.5 * torch.matmul(self.candidate_pair_weights, candidate.embeddings)
            if user is not None and user.embeddings is not None:
                mixed = mixed + torch.matmul(self.mixed_pair_weights, user.embeddings)
            total = total + (mixed * candidate.embeddings).sum((1, 2))
        return total

    def _crossed(self, user: SideColumns | None, candidate: SideColumns) -> Tensor:
        assert self.cross is not None
        columns = torch.cat(candidate.columns, dim=1)
        if user is not None:
            # Adding zeros of N rows repeats the one user for every candidate, and leaves N users as they are.
            repeated = torch.cat(user.columns, dim=1) + torch.zeros_like(columns[:, :1])
            columns = torch.cat([repeated, columns], dim=1)
        return self.cross(columns)

    def _take_interaction(self, model: MlpRanker) -> dict[str, list[int]]:
        """Which columns of the model's first layer each side has, in the order in which the graph makes them."""
        self.dot, self.cross, self.project, self.fwfm = None, None, None, None
        order: dict[str, list[int]] = {side: [] for side in SIDES}
        for part in model.input_layout():
            if part.side in order:
                order[part.side] += range(part.columns.start, part.columns.stop)
        for side, module in zip(SIDES, (self.user, self.candidate), strict=True):
            others, numbers = _parted(order[side], len(module.numbers.order))
            order[side] = others + [numbers[place] for place in module.numbers.order]
        embedded: tuple[IdFeature | ContinuousFeature, ...] = (*model.slots.own, *model.slots.binned)
        of_user = [feature.side == "user" for feature in embedded]
        if isinstance(model.interaction, CrossNetwork):
            self.cross = reordered_cross(model.interaction, order["user"] + order["candidate"])
        elif isinstance(model.interaction, FieldWeightedProducts):
            self.fwfm = model.interaction
            is_user = torch.tensor(of_user)
            weights = self.fwfm.pair_weights().detach()
            self.register_buffer("user_pair_weights", weights[is_user][:, is_user].clone())
            self.register_buffer("candidate_pair_weights", weights[~is_user][:, ~is_user].clone())
            self.register_buffer("mixed_pair_weights", weights[~is_user][:, is_user].clone())
        elif isinstance(model.interaction, DotProducts):
            self.dot = SplitDot(model.interaction, of_user)
            self.project = model.interaction.project
            if self.project is not None:
                weight = self.project.weight.detach()
                for name, columns, module in (
                    ("project_user", model.inputs.user_columns, self.user),
                    ("project_candidate", model.inputs.candidate_columns, self.candidate),
                ):
                    self.register_buffer(name, weight[:, columns][:, module.numbers.order].clone())
            products = model.input_layout()[-1].columns.start
            order["user"] += [products + place for place in self.dot.user_products]
            order["candidate"] += [products + place for place in self.dot.candidate_products]
        return order


class HiddenLayers(nn.Module):
    """The hidden layers, from the candidate's columns on.

    Args:
        weight: of the first layer `[H + num_wide, X]`, for these columns.
        others: the layers behind it.
        num_wide: units of the first layer that go to the outputs.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, others: list[nn.Linear], num_wide: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.others, self.num_wide = nn.ModuleList(others), num_wide

    def forward(self, base: Tensor, columns: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The last hidden layer, and what goes to the outputs, `[N, H]` and `[N, num_wide]`.

        Args:
            base: what the first layer's sums begin with `[U, H + num_wide]`.
            columns: its input, `[N, X]` together.
        """
        inputs, wide = self.inputs(base, columns)
        return inputs[-1], wide

    def inputs(self, base: Tensor, columns: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """The input of every layer and of the heads, and what goes to the outputs."""
        x = torch.cat(columns, dim=1)
        # One matrix product that starts from the user's part: ONNX's Gemm with a C of one row.
        hidden, wide = split_wide(torch.addmm(base, x, self.weight.T), self.num_wide)
        found = [x, torch.relu(hidden)]
        for layer in self.others:
            found.append(torch.relu(layer(found[-1])))
        return found, wide


class SideColumns:
    """What a side contributes.

    Args:
        embeddings: `[B, F, D]`; None without any.
        others: pooled pretrained embeddings, `[B, D']` each.
        numbers: `[B, K]`.
    """

    def __init__(self, embeddings: Tensor | None, others: list[Tensor], numbers: Tensor) -> None:
        self.embeddings, self.numbers = embeddings, numbers
        parts = [] if embeddings is None else [embeddings.flatten(1)]
        self.columns = [*parts, *others, *([numbers] if numbers.shape[1] else [])]


class MlpSide(nn.Module):
    """One side's embeddings and numbers.

    Args:
        model: whose features.
        side: user or candidate.
    """

    def __init__(self, model: MlpRanker, side: Side) -> None:
        super().__init__()
        slots = slots_of(model.spec, side)
        own = [(feature, part) for feature, part in slots if feature.embedding is None]
        offsets = [model.slots.layout.offset[feature.name] for feature, _ in own] if model.slots.layout else []
        bins = bins_of(model.bins, model.spec, side)
        self.lookup = SideLookup(own, offsets, bins, model.head.embedding_dim)
        self.pooling = SidePooling(own, 0 if bins is None else len(bins.columns))
        self.others: list[tuple[IdFeature, slice, str]] = [
            (feature, part, _pretrained_name(model, feature.name))
            for feature, part in slots
            if feature.embedding is not None
        ]
        mine = model.spec.of_side(side)
        self.numbers = GraphNumbers(model.inputs.of(mine), len(mine.continuous))
        self.floats: nn.Module = nn.Identity()
        self.other_floats = nn.ModuleList(nn.Identity() for _ in self.others)

    @property
    def is_flat(self) -> bool:
        """Whether each id feature has one id."""
        return self.pooling.is_flat and all(feature.num_slots == 1 for feature, _, _ in self.others)

    def read_bytes(self, steps: Mapping[str, RowSteps]) -> None:
        """Take rows of tables as bytes in these steps."""
        if self.lookup.has_rows:
            self.floats = FromBytes(steps[TABLE].of_rows(self.lookup.first_rows()))
        self.other_floats = nn.ModuleList(FromBytes(steps[table].values[0]) for _, _, table in self.others)

    def forward(self, graph: ServingGraph, side: SideInput) -> SideColumns:
        """The side's columns of the first layer's input."""
        rows = self.lookup(getattr(graph, TABLE, None), side)
        embeddings = None if rows is None else self.pooling(self.floats(rows), side.ids)
        others = [
            pooled(feature, floats(self.other_rows(graph, side, place)), side.ids[:, part])
            for place, ((feature, part, _), floats) in enumerate(zip(self.others, self.other_floats, strict=True))
        ]
        return SideColumns(embeddings, others, self.numbers(side.continuous, side.vectors))

    def other_rows(self, graph: ServingGraph, side: SideInput, place: int) -> Tensor:
        """Rows `[B, num_slots, D']` of a pretrained feature's table."""
        _, part, table = self.others[place]
        return nn.functional.embedding(side.ids[:, part].clamp_min(0), getattr(graph, table))


def _head(layer: nn.Module, hidden: Tensor) -> Tensor:
    """`[N]`: written as a product of one row with a matrix, for which ONNX Runtime has a routine of its own."""
    assert isinstance(layer, nn.Linear)
    return torch.addmm(layer.bias, layer.weight, hidden.T).squeeze(0)


def _stand_in(number: int, dim: int, kind: torch.dtype) -> Tensor:
    # No two alike, as the exporter would make one of them.
    return torch.full((2, dim), number + 1, dtype=kind)


def _parted(values: list[int], num_last: int) -> tuple[list[int], list[int]]:
    place = len(values) - num_last
    return values[:place], values[place:]


def isotonic_of(points: Mapping[str, Mapping[str, list[float]]] | None) -> Isotonic | None:
    """The click's calibration among those of `isotonic.json`."""
    return Isotonic.from_dict(points[CLICK]) if points and CLICK in points else None


def _pretrained_name(model: MlpRanker, feature: str) -> str:
    # Names of buffers have no dots, those of features may.
    return f"pretrained_{list(model.pretrained).index(feature)}"


def _side_input(ids: Tensor | None, continuous: Tensor | None, vectors: Tensor | None) -> SideInput | None:
    given = [part for part in (ids, continuous, vectors) if part is not None]
    if not given:
        return None
    absent = torch.zeros_like(given[0][:, :0], dtype=torch.float32)
    return SideInput(
        absent.to(torch.int64) if ids is None else ids,
        absent if continuous is None else continuous,
        absent if vectors is None else vectors,
    )
