"""The config of a light ranker's run. The sections are those of the YAML file; each goes whole to the one component
that owns it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tml.core.config.base_config import BaseConfig
from tml.core.config.runtime import RuntimeConfig
from tml.core.config.training import MAY_CHANGE, TrainingConfig
from tml.core.optimizers.config import OptimizerConfig

Name = Annotated[str, Field(min_length=1, max_length=200)]
Size = Annotated[int, Field(ge=1, le=65_536)]


def _optimizer(kind: str, learning_rate: float) -> Any:
    return lambda: OptimizerConfig.model_validate({kind: {"learning_rate": learning_rate}})


class InteractionConfig(BaseConfig):
    """Products of embeddings, beside what the layers find by themselves."""

    kind: Literal["dot", "cross", "fwfm"] = Field(
        description="dot: products of every two features' embeddings as inputs of the first layer, as in DLRM. cross: "
        "low-rank cross layers over the whole input, as in DCN-v2. fwfm: a weighted sum of the products of every two "
        "features' embeddings, added to the outputs; the cheapest."
    )
    num_layers: int | None = Field(default=None, ge=1, le=16, description="Cross layers; 2 if null. For cross alone.")
    rank: Size | None = Field(default=None, description="Rank of a cross layer's matrix; 64 if null. For cross alone.")

    @model_validator(mode="after")
    def _sizes_belong_to_cross(self) -> Self:
        if self.kind != "cross" and (self.num_layers is not None or self.rank is not None):
            raise ValueError(f"num_layers and rank are sizes of cross layers: leave them out with kind: {self.kind}")
        return self


class MlpConfig(BaseConfig):
    """Embeddings and numbers through dense layers to the heads."""

    embedding_dim: int = Field(default=16, ge=4, le=1024, description="Length of an id's embedding; a multiple of 4.")
    init_scale: float = Field(
        default=0.01, gt=0, le=10, description="Standard deviation of the embeddings' initial values."
    )
    data_type: Literal["fp32", "fp16"] = Field(default="fp32", description="How embeddings are kept.")
    hidden_sizes: list[Size] = Field(
        default=[256, 128], min_length=1, max_length=16, description="Units of the hidden layers, with ReLU."
    )
    heads: Literal["separate", "single_output"] = Field(
        default="separate",
        description="separate: a logit for the click and an output for the watch time. single_output: one output is "
        "both, as in the first design.",
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the hidden units that a training step leaves out of each row."
    )
    embedding_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a row's embeddings that a training step replaces by zeros, each as a whole.",
    )
    wide: bool = Field(
        default=False,
        description="A linear model of the whole input, added to each output: the effect of an id is learnt sooner "
        "than through hidden layers (Wide & Deep, arXiv 1606.07792). Costs one unit of the first layer an output.",
    )
    interaction: InteractionConfig | None = Field(default=None, description="None by default.")
    table_optimizer: OptimizerConfig = Field(
        default_factory=_optimizer("rowwise_adagrad", 0.05),
        description="Of the embeddings, applied inside the kernel. On a CPU: sgd, adagrad, rowwise_adagrad.",
    )
    dense_optimizer: OptimizerConfig = Field(
        default_factory=_optimizer("adam", 0.001), description="Of the layers and heads."
    )
    pretrained_optimizer: OptimizerConfig | None = Field(
        default=None,
        description="Of pretrained embeddings that are fine-tuned; plain sgd with a rate of 0.01 if null.",
    )

    @model_validator(mode="after")
    def _dim_fits_the_kernel(self) -> Self:
        if self.embedding_dim % 4:
            raise ValueError(f"embedding_dim must be a multiple of 4, not {self.embedding_dim}: the kernel reads fours")
        return self


class LollyLrConfig(BaseConfig):
    """Logistic regression over hashed one-hot ids: bins of the numbers and the values of the ids."""

    input_size_bits: int = Field(
        default=22, ge=1, le=30, description="Ids are hashed into 2 to the power of this many weights."
    )
    num_bins: int = Field(
        default=20, ge=1, le=10_000, description="Bins of a number whose feature names no discretizer of its own."
    )
    optimizer: OptimizerConfig = Field(default_factory=_optimizer("sgd", 0.002), description="Of weights and bias.")
    initial_model: str | None = Field(
        default=None, min_length=1, description="A lolly text model whose weights and bins the model starts from."
    )
    replicate_label: Name | None = Field(
        default=None,
        description="Label with the score of 0 to 100 that another model gave: its logit is learnt, not the click.",
    )

    @model_validator(mode="after")
    def _optimizer_takes_sparse_gradients(self) -> Self:
        # Said here too, and not by the first step alone: calibration comes before it.
        kind, section = self.optimizer.chosen
        if kind in ("adam", "rmsprop", "rowwise_adagrad") or bool(getattr(section, "weight_decay", 0.0)):
            raise ValueError(
                f"{kind} cannot be used here: a batch touches few of the weights. Use sgd, momentum, adagrad, ftrl or "
                "lazy_adam, without weight_decay"
            )
        return self


class ModelConfig(BaseConfig):
    """What is learnt."""

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = (("mlp", "lolly_lr"),)

    mlp: MlpConfig | None = Field(default=None, description="Embeddings, hidden layers, heads.")
    lolly_lr: LollyLrConfig | None = Field(default=None, description="Sparse logistic regression.")


class RankingLossConfig(BaseConfig):
    """A loss of the order within a group (a request or a user)."""

    kind: Literal["pointwise", "ranknet", "lambdarank", "listnet", "listmle"] = Field(description="Which loss.")
    weight: float = Field(default=1.0, gt=0, le=1e3, description="Factor of this loss.")


class LossConfig(BaseConfig):
    """`alpha * click loss + beta * watch-time loss`, and a ranking loss if asked for."""

    click_label: Name = Field(default="click", description="The binary label.")
    watch_time_label: Name | None = Field(default=None, description="The label in seconds; none if null.")
    alpha: float = Field(default=1.0, ge=0, le=1e3, description="Factor of the click's weighted cross-entropy.")
    beta: float = Field(default=1.0, ge=0, le=1e3, description="Factor of the watch time's squared error.")
    watch_time_loss: Literal["log1p_mse", "mse"] = Field(
        default="log1p_mse", description="Squared error of log(1 + seconds), or of seconds."
    )
    ranking: RankingLossConfig | None = Field(
        default=None, description="Order within groups. Needs groups that lie together: train_data.shuffle false."
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.alpha == 0 and self.ranking is None and (self.beta == 0 or self.watch_time_label is None):
            raise ValueError("there is nothing to learn: alpha is 0 and there is no other loss")
        return self


class DataConfig(BaseConfig):
    """Encoded rows to read: the parquet files that `tml light-ranker prepare` writes."""

    data_root: str = Field(min_length=1, description="Folder of parquet files, or a glob pattern; a remote URL also.")
    offset: int = Field(default=0, ge=0, description="Rows left out at the front of the files laid end to end.")
    limit: int | None = Field(default=None, ge=1, description="Rows used after them; all if null.")


class TrainDataConfig(DataConfig):
    """Encoded rows to train on."""

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = (("global_batch_size", "per_replica_batch_size"),)

    global_batch_size: int | None = Field(
        default=None, ge=1, le=2**24, description="Rows of a step on all ranks together."
    )
    per_replica_batch_size: int | None = Field(default=None, ge=1, le=2**24, description="Rows of a step on each rank.")
    shuffle: bool = Field(default=True, description="Shuffle the rows of an epoch.")
    shuffle_window_rows: int = Field(
        default=200_000,
        ge=1,
        description="Rows that are shuffled among each other, at least; memory and the wait for the first step grow "
        "with it.",
    )
    keep_rate: float = Field(
        default=1.0, gt=0, le=1, description="Share of the rows that are used, drawn anew by the seed in each epoch."
    )

    def batch_size(self, num_ranks: int) -> int:
        """Rows of a step on all ranks together."""
        if self.global_batch_size is not None:
            return self.global_batch_size
        assert self.per_replica_batch_size is not None
        return self.per_replica_batch_size * num_ranks


class CalibrationConfig(BaseConfig):
    """Statistics of the numbers, found before training: scales of their transforms, bounds of their bins."""

    sample_rate: float = Field(default=1.0, gt=0, le=1, description="Share of the training rows, drawn by the seed.")
    max_rows: int = Field(
        default=1_000_000,
        ge=1,
        le=10**9,
        description="Rows at most (a lower rate is drawn if there are more); all of them are held in memory.",
    )
    load_dir: str | None = Field(
        default=None, min_length=1, description="Folder of an earlier calibration to use instead of fitting one."
    )


NumBins = Annotated[int, Field(ge=2, le=10**6)]


class IsotonicConfig(BaseConfig):
    """Calibration of the trained model's probabilities: a rising function fitted on the validation rows."""

    num_bins: NumBins | Annotated[list[NumBins], Field(min_length=1, max_length=32)] = Field(
        default=1000,
        description="Points of the function; fewer if rows are fewer. Of several numbers, the one whose log loss on "
        "held-out parts of the validation rows is least.",
    )
    anchored: bool = Field(
        default=False,
        description="Let the function begin at (0, 0) and end at (1, 1), instead of being flat before its first and "
        "after its last point. For few points.",
    )


class ExportConfig(BaseConfig):
    """The files of a served model."""

    int8: bool = Field(default=False, description="Write the model in 8 bits as well, and say what it costs in AUC.")
    max_abs_difference: float = Field(
        default=1e-4, gt=0, le=1, description="The exported file may differ from the trainer's probabilities by this."
    )


class EvaluationConfig(BaseConfig):
    """Metrics of validation and test rows."""

    batch_size: int = Field(default=8192, ge=1, le=2**24, description="Rows of a batch on all ranks together.")
    ndcg_at: list[Size] = Field(
        default=[1, 3, 5, 10], max_length=16, description="Cut-offs of NDCG, where the data has groups."
    )
    metrics: list[Name] = Field(
        default=[
            *("total_weight", "num_samples", "rce", "rce_std_err", "nrce", "ctr", "predicted_ctr", "pred_std_dev"),
            *("accuracy", "precision", "recall", "roc_auc", "unweighted_roc_auc", "pr_auc", "ece", "ece_equal_mass"),
        ],
        description="Names of `core/metrics/catalogue.py`. Once there is an isotonic calibration they read the "
        "calibrated probabilities, and those that change are given with the prefix uncalibrated_ too.",
    )


class LightRankerConfig(BaseConfig):
    """A light ranker's run."""

    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="Device, seed, precision, tracking.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The loop.")
    features_dir: str = Field(
        min_length=1, description="Folder that `tml light-ranker prepare` wrote: features, encoding, vocabularies."
    )
    model: ModelConfig = Field(description="Embeddings, layers, optimizers.")
    loss: LossConfig = Field(default_factory=LossConfig, description="What is minimised.")
    train_data: TrainDataConfig = Field(description="Rows to train on.")
    validation_data: DataConfig | None = Field(
        default=None, description="Rows to evaluate on during training, and to fit the isotonic calibration on."
    )
    test_data: DataConfig | None = Field(
        default=None, description="Rows of the final evaluation, once after training.", json_schema_extra=MAY_CHANGE
    )
    calibration: CalibrationConfig = Field(
        default_factory=CalibrationConfig, description="What is fitted before training."
    )
    isotonic: IsotonicConfig | None = Field(
        default_factory=IsotonicConfig,
        description="Calibration after training; null for none.",
        json_schema_extra=MAY_CHANGE,
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="What is measured.", json_schema_extra=MAY_CHANGE
    )
    export: ExportConfig = Field(
        default_factory=ExportConfig, description="What is written for serving.", json_schema_extra=MAY_CHANGE
    )

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.loss.ranking is not None and self.train_data.shuffle:
            raise ValueError("loss.ranking needs rows of a group together: set train_data.shuffle to false")
        if self.model.lolly_lr is not None and (self.loss.watch_time_label or self.loss.ranking):
            raise ValueError("lolly_lr learns one label alone: leave loss.watch_time_label and loss.ranking out")
        return self
