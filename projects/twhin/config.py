"""The config of a TwHIN run. The sections are those of the YAML file; each goes whole to the one component that owns
it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tml.core.config.base_config import BaseConfig
from tml.core.config.runtime import RuntimeConfig
from tml.core.config.training import MAY_CHANGE, TrainingConfig
from tml.core.optimizers.config import OptimizerConfig

Name = Annotated[str, Field(min_length=1, max_length=200)]

# A pair of a relation and a row is told from others by one int64 (data/masks.py, evaluation/known_edges.py).
MAX_ROWS, MAX_RELATIONS = 2**40, 2**23


class TableConfig(BaseConfig):
    """The embeddings of one kind of entity."""

    name: Name = Field(pattern=r"^[^+/.\s]+$", description="Name of the table; relations refer to it.")
    num_embeddings: int = Field(ge=1, le=MAX_ROWS, description="Number of entities.")
    embedding_dim: int = Field(ge=1, le=8192, description="Length of an embedding; the same for all tables.")
    data_type: Literal["fp32", "fp16"] = Field(
        default="fp32", description="How rows are kept. bf16 is not offered: the CPU kernel has none."
    )
    init_scale: float = Field(
        default=1e-3,
        gt=0,
        le=10,
        description="Standard deviation of the initial values, drawn from a normal distribution.",
    )
    optimizer: OptimizerConfig = Field(
        description="Applied inside the kernel during backward. On a CPU: sgd, adagrad, rowwise_adagrad."
    )


class EmbeddingsConfig(BaseConfig):
    """The tables."""

    tables: list[TableConfig] = Field(min_length=1, description="One per kind of entity.")

    @model_validator(mode="after")
    def _tables_fit(self) -> Self:
        names = [table.name for table in self.tables]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two tables have the name {twice[0]!r}")
        for field in ("embedding_dim", "data_type"):
            values = {table.name: getattr(table, field) for table in self.tables}
            if len(set(values.values())) > 1:
                raise ValueError(f"{field} must be the same for all tables, since they are compared: {values}")
        return self


OperatorName = Literal["identity", "translation", "diagonal", "complex_diagonal"]


class RelationConfig(BaseConfig):
    """One kind of edge."""

    name: Name = Field(description="Name of the relation. The order of relations gives the index in the rel column.")
    lhs: Name = Field(description="Table of the left-hand side.")
    rhs: Name = Field(description="Table of the right-hand side.")
    operator: OperatorName = Field(
        default="translation", description="How the left-hand side is moved before the comparison."
    )
    weight: float = Field(default=1.0, gt=0, le=1e6, description="Weight of this relation's edges in the loss.")


class RelationsFileConfig(BaseConfig):
    """Relations of a knowledge graph, too many to write down: all with one operator."""

    file: str = Field(min_length=1, description="The relations.parquet that `tml convert` writes.")
    operator: OperatorName = Field(default="translation", description="Operator of every relation.")

    def read(self) -> list[dict[str, str]]:
        """One section per relation, in order of their index.

        Raises:
            ValueError: there is no such file, or it is not a file of relations.
        """
        # pyarrow is imported late: reading a config that lists its relations stays quick.
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(self.file, columns=["id", "index", "lhs", "rhs"]).sort_by("index").to_pylist()
        except (OSError, ValueError) as error:
            raise ValueError(f"relations cannot be read from {self.file}: {error}; run `tml convert` first") from error
        return [{"name": r["id"], "lhs": r["lhs"], "rhs": r["rhs"], "operator": self.operator} for r in rows]


class RegularizationConfig(BaseConfig):
    """A penalty on the rows and relation parameters that an edge touches."""

    kind: Literal["n3", "l2"] = Field(description="n3: cubed moduli. l2: squares.")
    weight: float = Field(gt=0, le=1e3, description="Factor of the penalty, which is averaged over edges.")


class ModelConfig(BaseConfig):
    """What is learnt."""

    embeddings: EmbeddingsConfig = Field(description="The tables.")
    relations: list[RelationConfig] = Field(
        min_length=1, description="The kinds of edges, in order of their index; or {file, operator} to read them."
    )
    comparator: Literal["dot", "cosine", "l2"] = Field(
        default="dot", description="How a moved left-hand side is compared with a right-hand side."
    )
    loss: Literal["softmax", "logistic", "ranking"] = Field(
        default="softmax", description="Loss of an edge against its negatives."
    )
    margin: float | None = Field(
        default=None,
        ge=0,
        le=1e3,
        description="How far a negative should score below its edge; null is 0.1 for ranking, 0 for softmax. With N "
        "of n candidates drawn, log(n / N) makes softmax estimate the one over all. logistic has none.",
    )
    reciprocal_relations: bool = Field(
        default=False,
        description="Give every relation a second set of parameters that scores left-hand sides.",
    )
    regularization: RegularizationConfig | None = Field(default=None, description="None by default.")
    translation_optimizer: OptimizerConfig = Field(description="Optimizer of the relations' parameters.")

    @property
    def margin_in_effect(self) -> float:
        """The margin, or the loss's default."""
        default = 0.1 if self.loss == "ranking" else 0.0
        return default if self.margin is None else self.margin

    @model_validator(mode="before")
    @classmethod
    def _relations_of_file(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("relations"), dict):
            return {**data, "relations": RelationsFileConfig.model_validate(data["relations"]).read()}
        return data

    @model_validator(mode="after")
    def _relations_fit(self) -> Self:
        if len(self.relations) > MAX_RELATIONS:
            raise ValueError(f"{len(self.relations)} relations are too many: at most {MAX_RELATIONS} can be told apart")
        tables = [table.name for table in self.embeddings.tables]
        for index, relation in enumerate(self.relations):
            for side in ("lhs", "rhs"):
                if getattr(relation, side) not in tables:
                    raise ValueError(
                        f"relation {relation.name!r} (relations.{index}) has an unknown {side} table "
                        f"{getattr(relation, side)!r}; the tables are {', '.join(tables)}"
                    )
        names = [relation.name for relation in self.relations]
        if len(set(names)) < len(names):
            raise ValueError(f"two relations have the name {max(names, key=names.count)!r}")
        if self.loss == "logistic" and self.margin is not None:
            raise ValueError("the logistic loss has no margin: leave margin out")
        odd = self.embeddings.tables[0].embedding_dim % 2
        if odd and any(relation.operator == "complex_diagonal" for relation in self.relations):
            raise ValueError("complex_diagonal reads an embedding as complex numbers: embedding_dim must be even")
        unused = sorted(set(tables) - {end for relation in self.relations for end in (relation.lhs, relation.rhs)})
        if unused:
            raise ValueError(f"no relation has an end in table {unused[0]!r}, so it would never be trained")
        return self


class EdgesConfig(BaseConfig):
    """Edges to read: parquet files with the columns lhs, rel, rhs."""

    data_root: str = Field(min_length=1, description="Folder of parquet files, or a glob pattern; a remote URL also.")
    offset: int = Field(default=0, ge=0, description="Edges left out at the front of the files laid end to end.")
    limit: int | None = Field(default=None, ge=1, description="Edges used after them; all if null.")


class TrainDataConfig(EdgesConfig):
    """Edges to train on, and their negatives."""

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = (("global_batch_size", "per_replica_batch_size"),)

    global_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=2**24,
        description="Edges of a step on all ranks together; the same run on any number of ranks.",
    )
    per_replica_batch_size: int | None = Field(
        default=None, ge=1, le=2**24, description="Edges of a step on each rank."
    )
    in_batch_negatives: int = Field(
        default=50, ge=0, le=2**16, description="Negatives of an edge and side taken from the other edges of its chunk."
    )
    global_negatives: int = Field(
        default=50, ge=0, le=2**16, description="Negatives of a chunk and side drawn uniformly from the table."
    )
    chunk_size: int | None = Field(
        default=None,
        ge=1,
        le=2**16,
        description="Edges that share their negatives; in_batch_negatives if null (64 if that is 0). At least "
        "in_batch_negatives.",
    )
    assembly_blocks: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="A batch is cut into chunks in this many equal parts. A run gives the same result on any number "
        "of ranks that divides it.",
    )
    shuffle: bool = Field(default=True, description="Shuffle the edges of an epoch.")
    shuffle_window_rows: int = Field(
        default=1_000_000, ge=1, description="Edges that are shuffled among each other, at least; memory grows with it."
    )

    @model_validator(mode="after")
    def _negatives_fit(self) -> Self:
        if self.in_batch_negatives + self.global_negatives == 0:
            raise ValueError("in_batch_negatives and global_negatives are both 0: there is nothing to learn from")
        if self.chunk_size is not None and self.chunk_size < self.in_batch_negatives:
            raise ValueError(
                f"chunk_size ({self.chunk_size}) must be at least in_batch_negatives ({self.in_batch_negatives})"
            )
        return self

    @property
    def edges_per_chunk(self) -> int:
        """The chunk size in effect."""
        return self.chunk_size or self.in_batch_negatives or 64

    def batch_size(self, num_ranks: int) -> int:
        """Edges of a step on all ranks together."""
        if self.global_batch_size is not None:
            return self.global_batch_size
        assert self.per_replica_batch_size is not None
        return self.per_replica_batch_size * num_ranks


class EvaluationConfig(BaseConfig):
    """Filtered ranking of every edge's both ends against the candidates of their tables."""

    max_edges: int | None = Field(
        default=None, ge=1, description="Rank this many edges, drawn by the seed, during training; all if null."
    )
    num_candidates: int | None = Field(
        default=None, ge=1, description="Rank against this many uniformly drawn candidates; all entities if null."
    )
    block_size: int = Field(
        default=512, ge=1, le=2**16, description="Edges that a thread ranks at a time, at most; memory grows with it."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="Products of the ranking. bf16 is faster where the processor has it and rounds scores to 8 bits.",
    )


class TwhinConfig(BaseConfig):
    """A TwHIN run."""

    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="Device, seed, precision, tracking.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The loop.")
    model: ModelConfig = Field(description="Tables, relations, loss.")
    train_data: TrainDataConfig = Field(description="Edges to train on.")
    validation_data: EdgesConfig | None = Field(default=None, description="Edges to evaluate on during training.")
    test_data: EdgesConfig | None = Field(
        default=None, description="Edges of the final evaluation, once after training.", json_schema_extra=MAY_CHANGE
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="How edges are ranked.", json_schema_extra=MAY_CHANGE
    )
    vocab_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Folder with <table>.parquet (id, index), as `tml convert` writes it: exports then answer by "
        "original id.",
    )
