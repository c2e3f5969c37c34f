"""The text model that a run starts from: its text is kept with the run, whose bins are those of the text."""

from __future__ import annotations

from pathlib import Path

from tml.common.errors import ConfigError
from tml.common.filesystem import atomic_write, exists, open_file
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.lolly.model import LollyModel
from tml.projects.light_ranker.lolly.text import read_lolly

KEPT_NAME = "initial_model.tsv"


def initial_model(config: LightRankerConfig) -> LollyModel | None:
    """The text model as the run has kept it, or as it is if the run has not begun; None if there is none.

    Raises:
        DataError: it cannot be read.
    """
    section = config.model.lolly_lr
    if section is None or section.initial_model is None:
        return None
    kept = _kept(config)
    return read_lolly(kept if kept.is_file() else section.initial_model)


def keep_initial_model(config: LightRankerConfig, has_begun: bool) -> None:
    """Copy the text into the run's folder, so that the run can be continued, evaluated and exported without it.

    Args:
        config: the whole config.
        has_begun: there are checkpoints, whose weights belong to the text that is kept.

    Raises:
        ConfigError: the text has changed since the run began.
        DataError: there is no such text.
    """
    section = config.model.lolly_lr
    if section is None or section.initial_model is None:
        return
    kept = _kept(config)
    known = kept.read_bytes() if kept.is_file() else None
    if has_begun and known is not None and not exists(section.initial_model):
        return
    with open_file(section.initial_model) as file:
        text = file.read()
    if has_begun and known not in (None, text):
        raise ConfigError(
            "the text model has changed since the run began", where="model.lolly_lr.initial_model",
            value=section.initial_model, limit=f"the text in {kept}",
            fix="choose another training.save_dir, or put the text back",
        )  # fmt: skip
    if text != known:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as file:
            file.write(text)


def _kept(config: LightRankerConfig) -> Path:
    return Path(config.training.save_dir) / KEPT_NAME
