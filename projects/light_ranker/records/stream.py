"""Records of block files as one stream: a share of them, and each rank's part.

Shuffling, repeating and resuming within an epoch are the data set's business, which reads parquet: convert the files
once (`table.records_to_table`) and train from the tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mmh3
import numpy as np

from tml.common.errors import ConfigError
from tml.projects.light_ranker.data.files import keep_files
from tml.projects.light_ranker.records.block_reader import BlockCounts, BlockReader
from tml.projects.light_ranker.records.columns import OnError


def iterate_records(
    files: Sequence[str],
    keep_rate: float = 1.0,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    *,
    file_keep_rate: float = 1.0,
    on_error: OnError = "fail",
    counts: BlockCounts | None = None,
) -> Iterator[bytes]:
    """The bytes of records, in the order of the files.

    Whether a file or record is kept depends on the seed, the file's name and the record's place in it, and not on the
    shard: the shards of all ranks are disjoint and together what one rank would read.

    Args:
        files: block files, as `data.files.find_files` lists them (patterns, folders by date).
        keep_rate: chance of each record, in (0, 1].
        seed: of the draws; another seed for each pass draws anew.
        shard: this rank and the number of ranks. Ranks share out whole files, or, if there are fewer files than ranks,
            all read every file and take turns at its records.
        file_keep_rate: chance of each file, in (0, 1].
        on_error: "skip" passes over damaged blocks and counts them.
        counts: where to count blocks and records; ranks that take turns count all they read.

    Raises:
        ConfigError: a rate or the shard is out of range.
        DataError: a file is damaged or missing, or none is left.
    """
    rank, num_ranks = shard
    if not (0 < keep_rate <= 1 and 0 < file_keep_rate <= 1 and 0 <= rank < num_ranks):
        raise ConfigError(
            "rate or shard is out of range", where="iterate_records", value=(keep_rate, file_keep_rate, shard),
            limit="rates in (0, 1] and 0 <= rank < number of ranks",
        )  # fmt: skip
    kept = list(files) if file_keep_rate == 1 else keep_files(files, file_keep_rate, seed)
    takes_turns = len(kept) < num_ranks
    turn = 0
    for number, file in enumerate(kept):
        if not takes_turns and number % num_ranks != rank:
            continue
        draws = np.random.default_rng([seed, mmh3.hash(file, signed=False)])
        for records in BlockReader(file, on_error, counts=counts):
            mine = draws.random(len(records)) < keep_rate if keep_rate < 1 else np.ones(len(records), bool)
            if takes_turns:
                mine &= (np.arange(turn, turn + len(records)) % num_ranks) == rank
                turn += len(records)
            for i in np.flatnonzero(mine):
                yield records[i]
