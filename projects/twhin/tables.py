"""The tables of a config: where each lies, and what names their rows. Needs neither torch nor fbgemm."""

from __future__ import annotations

import os

from tml.common.errors import DataError
from tml.common.modules.table_layout import TableLayout, TableSpec
from tml.core.optimizers.fused import fused_spec
from tml.projects.twhin.config import ModelConfig, TwhinConfig
from tml.projects.twhin.data.vocab import Vocabulary


def table_layout(config: ModelConfig, device_type: str) -> TableLayout:
    """The tables of a model and where each lies.

    Raises:
        ConfigError: the kernels of this device lack an optimizer.
    """
    specs = []
    for index, table in enumerate(config.embeddings.tables):
        specs.append(
            TableSpec(
                name=table.name,
                num_embeddings=table.num_embeddings,
                embedding_dim=table.embedding_dim,
                optimizer=fused_spec(table.optimizer, device_type, f"model.embeddings.tables.{index}.optimizer"),
                data_type=table.data_type,
                init_scale=table.init_scale,
            )
        )
    return TableLayout(specs)


def vocab_fingerprint(table: str) -> str:
    """The name under which a checkpoint keeps the digest of a table's vocabulary."""
    return f"vocab.{table}"


def vocab_hashes(config: TwhinConfig) -> dict[str, str]:
    """The digest of every table's vocabulary; empty without `vocab_dir`.

    Raises:
        DataError: a vocabulary is missing, damaged, or has another number of ids than its table has rows.
    """
    if config.vocab_dir is None:
        return {}
    hashes = {}
    for index, table in enumerate(config.model.embeddings.tables):
        path = os.path.join(config.vocab_dir, f"{table.name}.parquet")
        vocabulary = Vocabulary.from_parquet(path)
        if len(vocabulary) != table.num_embeddings:
            raise DataError(
                "a table and its vocabulary differ in length",
                where=f"model.embeddings.tables.{index}.num_embeddings and {path}",
                value=f"{table.num_embeddings} rows, {len(vocabulary)} ids",
                fix="set num_embeddings to the number of ids",
            )
        hashes[table.name] = vocabulary.hash
    return hashes
