"""Where and how a run computes: device, seeds, precision, pipeline, logging, tracking. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tml.core.config.base_config import BaseConfig
from tml.core.config.training import MAY_CHANGE


class LogConfig(BaseConfig):
    """Log lines of the run."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severity shown.")
    json_lines: bool = Field(default=False, description="Write the log as JSON lines to save_dir/log.jsonl as well.")
    all_ranks: bool = Field(default=False, description="Log every rank instead of rank 0 (errors are always shown).")


class WandbConfig(BaseConfig):
    """Weights & Biases; needs the package wandb."""

    project: str = Field(min_length=1, description="Project the run belongs to.")
    name: str | None = Field(default=None, description="Name of the run; chosen by the service if null.")
    entity: str | None = Field(default=None, description="User or team that owns the project.")
    mode: Literal["online", "offline"] = Field(default="online", description="offline keeps the run in save_dir.")
    tags: list[str] = Field(default_factory=list, description="Labels of the run.")


class MlflowConfig(BaseConfig):
    """MLflow; needs the package mlflow."""

    uri: str = Field(min_length=1, description="Tracking server, or a folder or database on this machine.")
    experiment: str = Field(min_length=1, description="Experiment the run belongs to.")
    name: str | None = Field(default=None, description="Name of the run; chosen by the server if null.")


class TrackingConfig(BaseConfig):
    """Where metrics go besides save_dir/metrics.jsonl, which is always written."""

    tensorboard: bool = Field(default=True, description="Write event files to save_dir/tensorboard.")
    wandb: WandbConfig | None = Field(default=None, description="Send metrics to Weights & Biases.")
    mlflow: MlflowConfig | None = Field(default=None, description="Send metrics to MLflow.")


class RuntimeConfig(BaseConfig):
    """The machine's side of a run."""

    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="auto takes a GPU if there is one.", json_schema_extra=MAY_CHANGE
    )
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Of initial parameters, the order of rows, and random draws."
    )
    enable_tensorfloat32: bool = Field(
        default=False,
        description="float32 matrix products with shorter mantissas: TF32 on a GPU, bfloat16 on a CPU that has it. "
        "Faster, a little less exact.",
    )
    enable_amp: bool = Field(
        default=False,
        description="Dense layers in bfloat16 (autocast). float16 is not offered: it needs the loss scaled "
        "and steps skipped on overflow, and the tables are updated inside backward, where no scaler can skip them.",
    )
    deterministic: bool = Field(
        default=False, description="Refuse operations whose result may differ from run to run; slower on a GPU."
    )
    pipeline: Literal["auto", "plain", "sparse_dist"] = Field(
        default="auto",
        description="plain: copy a batch, then compute. sparse_dist: ids of the next batch travel between ranks while "
        "this one computes. auto: sparse_dist where tables are sharded and there is a GPU or more than one rank.",
        json_schema_extra=MAY_CHANGE,
    )
    num_prefetch_batches: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Batches made ready by a background thread; 0 makes each in the training thread. null is 2, but 0 "
        "on a CPU of one or two cores, where the thread would take more from the step than it gives.",
        json_schema_extra=MAY_CHANGE,
    )
    num_threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads of a CPU operation; torch decides if null.",
        json_schema_extra=MAY_CHANGE,
    )
    collective_timeout_in_s: float = Field(
        default=600.0,
        gt=0,
        le=86_400,
        description="Seconds a rank waits for the others before the run fails.",
        json_schema_extra=MAY_CHANGE,
    )
    log: LogConfig = Field(default_factory=LogConfig, description="Log lines.", json_schema_extra=MAY_CHANGE)
    tracking: TrackingConfig = Field(
        default_factory=TrackingConfig, description="Metrics trackers.", json_schema_extra=MAY_CHANGE
    )
