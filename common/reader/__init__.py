"""Reads rows from parquet files: every row once per epoch, shuffled by seed, the same order on any number of ranks.

`parquet_reader` reads files, `flight` reads through another machine that decodes them.
"""

from tml.common.reader.column_blocks import joined_columns
from tml.common.reader.parquet_reader import (
    DEFAULT_SHUFFLE_WINDOW_ROWS,
    Check,
    ParquetReader,
    RowBatch,
    check_shares,
)

__all__ = ["DEFAULT_SHUFFLE_WINDOW_ROWS", "Check", "ParquetReader", "RowBatch", "check_shares", "joined_columns"]
