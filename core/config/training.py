"""How long to train, and what happens along the way: saving, logging, evaluating, stopping. No torch here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from tml.core.config.base_config import BaseConfig
from tml.core.config.gradients import GradientsConfig

NumSteps = Annotated[int, Field(ge=1, le=10**12)]

# A resumed run may differ in these; a change of any other field is refused unless `allow_config_changes` names it.
MAY_CHANGE: dict[str, Any] = {"may_change": True}


class EarlyStoppingConfig(BaseConfig):
    """Stop when a metric has not improved for some evaluations, and go back to the best step."""

    metric: str = Field(min_length=1, description="Name of the evaluation's metric to watch.")
    minimize: bool = Field(default=False, description="True if smaller is better, as for a loss.")
    patience: int = Field(
        default=3, ge=1, le=10_000, description="Evaluations in a row without improvement after which training stops."
    )
    tolerance: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="A change has to be larger than this to be an improvement."
    )


class ProfileConfig(BaseConfig):
    """Steps to profile."""

    start: int = Field(default=10, ge=0, description="Number of completed steps after which profiling begins.")
    count: int = Field(default=5, ge=1, le=1000, description="Steps to profile.")


class TrainingConfig(BaseConfig):
    """The training loop. One step is one update of the parameters."""

    save_dir: str = Field(
        default="runs/default",
        min_length=1,
        description="Folder of this run: checkpoints, metrics, traces. A run continues from its latest checkpoint.",
        json_schema_extra=MAY_CHANGE,
    )
    num_train_steps: NumSteps | None = Field(
        default=None,
        description="Stop after this many steps, counted from the start of the run.",
        json_schema_extra=MAY_CHANGE,
    )
    num_epochs: int | None = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="Stop after this many passes over the data, or after num_train_steps if that is earlier.",
        json_schema_extra=MAY_CHANGE,
    )
    initial_checkpoint_dir: str | None = Field(
        default=None,
        description="Folder of another run: its latest checkpoint gives the parameters of step 0 (a warm start). "
        "Without effect once save_dir has a checkpoint of its own.",
        json_schema_extra=MAY_CHANGE,
    )
    checkpoint_every_n: NumSteps | None = Field(
        default=1000,
        description="Steps between checkpoints. One is always saved at the end; none in between if null.",
        json_schema_extra=MAY_CHANGE,
    )
    checkpoint_max_to_keep: int | None = Field(
        default=3,
        ge=1,
        description="Checkpoints to keep; the best one is kept in addition. All if null.",
        json_schema_extra=MAY_CHANGE,
    )
    checkpoint_async: bool = Field(
        default=False,
        description="Write checkpoints in the background; training waits for a copy in memory only.",
        json_schema_extra=MAY_CHANGE,
    )
    strict_resume: bool = Field(
        default=False,
        description="Fail if the latest checkpoint is damaged, instead of stepping back to the one before.",
        json_schema_extra=MAY_CHANGE,
    )
    allow_config_changes: list[str] = Field(
        default_factory=list,
        description="Dotted paths (or their first parts) in which a resumed run may differ from the run that wrote the "
        "checkpoint, such as train_data.global_batch_size, or fingerprints.data for the content of the data.",
        json_schema_extra=MAY_CHANGE,
    )
    overwrite_save_dir: bool = Field(
        default=False,
        description="Delete the checkpoints and metrics in save_dir and start at step 0. Remove it before you restart.",
        json_schema_extra=MAY_CHANGE,
    )
    train_log_every_n: NumSteps = Field(
        default=100, description="Steps between log lines of training.", json_schema_extra=MAY_CHANGE
    )
    evaluate_every_n: NumSteps | None = Field(
        default=None,
        description="Steps between evaluations; there is always one at the end. Only at the end if null.",
        json_schema_extra=MAY_CHANGE,
    )
    num_eval_steps: int = Field(
        default=-1,
        ge=-1,
        description="Batches of an evaluation: -1 for all of the data, 0 for no evaluation.",
        json_schema_extra=MAY_CHANGE,
    )
    eval_timeout_in_s: float = Field(
        default=3600.0,
        gt=0,
        le=31_536_000,
        description="Evaluation of another job's folder ends after this many seconds without a new checkpoint.",
        json_schema_extra=MAY_CHANGE,
    )
    eval_poll_every_s: float = Field(
        default=30.0,
        gt=0,
        le=86_400,
        description="Seconds between looks into another job's folder.",
        json_schema_extra=MAY_CHANGE,
    )
    gradient_accumulation: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Batches joined into one step. They go through one forward and backward together, because "
        "tables are updated in every backward: summing gradients over several would not be the same. So memory "
        "grows with it.",
    )
    gradients: GradientsConfig = Field(
        default_factory=GradientsConfig, description="Compression, noise and clipping of dense parameters' gradients."
    )
    early_stopping: EarlyStoppingConfig | None = Field(
        default=None, description="Stop when a metric no longer improves; needs evaluate_every_n."
    )
    max_duration_in_s: float | None = Field(
        default=None,
        gt=0,
        description="Stop after this many seconds of training, counted over restarts too. No limit if null.",
        json_schema_extra=MAY_CHANGE,
    )
    stop_at_time: datetime | None = Field(
        default=None,
        description="Stop after the step in which this time comes: 2031-05-28T18:30:00+02:00, UTC without an offset.",
        json_schema_extra=MAY_CHANGE,
    )
    stop_if_file_exists: str | None = Field(
        default=None,
        min_length=1,
        description="Stop within a second or a step of a file with this path being made; rank 0 looks. It stays there: "
        "remove it before you start again.",
        json_schema_extra=MAY_CHANGE,
    )
    check_finite_every_n: NumSteps = Field(
        default=1,
        description="Steps between checks, before the backward, that the loss of every rank is finite. Larger values "
        "save a wait for the GPU per step; the tables may then have been damaged for up to n - 1 steps.",
        json_schema_extra=MAY_CHANGE,
    )
    profile_steps: ProfileConfig | None = Field(
        default=None,
        description="Write a Chrome trace of these steps to save_dir/profile, and log how long each phase takes.",
        json_schema_extra=MAY_CHANGE,
    )

    @field_validator("stop_at_time")
    @classmethod
    def _naive_means_utc(cls, time: datetime | None) -> datetime | None:
        return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if "://" in self.save_dir:
            raise ValueError(f"save_dir must be a local or shared folder, not {self.save_dir!r}: mount the bucket")
        if self.num_train_steps is None and self.num_epochs is None:
            raise ValueError("training would never end: set num_train_steps or num_epochs")
        if self.early_stopping is not None and self.evaluate_every_n is None:
            raise ValueError("early_stopping has nothing to watch: set evaluate_every_n")
        if self.early_stopping is not None and self.num_eval_steps == 0:
            raise ValueError("early_stopping has nothing to watch: num_eval_steps is 0")
        return self


def changeable_paths(section: type[BaseConfig], prefix: str = "") -> set[str]:
    """Dotted paths of the fields of a section, and of sections in it, in which a resumed run may differ.

    Args:
        section: its type, such as that of the whole config.
        prefix: its place in the whole config, with a dot at the end; empty for the whole.
    """
    found: set[str] = set()
    for name, field in section.model_fields.items():
        extra, kind = field.json_schema_extra, field.annotation
        if isinstance(extra, dict) and extra.get("may_change"):
            found.add(prefix + name)
        elif isinstance(kind, type) and issubclass(kind, BaseConfig):
            found |= changeable_paths(kind, f"{prefix}{name}.")
    return found
