"""Reads rows from parquet files: every row once per epoch, shuffled by seed, the same order on any number of ranks.

`parquet_reader` reads files, `flight` reads through another machine that decodes them.
"""

from tml.common.reader.parquet_reader import ParquetReader, RowBatch, joined_columns

__all__ = ["ParquetReader", "RowBatch", "joined_columns"]
