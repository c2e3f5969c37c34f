"""An exported ranker that scores raw features, from its folder alone.

    scorer = Scorer("exported", num_threads=2)
    answer = scorer.score({"country": "nl", "age": 31}, [{"tweet": "t1", "author": "a"}, {"tweet": "t2"}], top_k=1)
    answer.probabilities            # float32 [2]
    answer.top_k                    # the best candidates' indices, best first

Letters: `N` candidates, `B` rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tml.common.errors import ConfigError, NonFiniteError
from tml.projects.light_ranker.features.encoder import SIDES, EncodedRows, Encoder
from tml.projects.light_ranker.features.spec import Side
from tml.projects.light_ranker.serving.columns import Candidates, by_column, columns_of, row_columns
from tml.projects.light_ranker.serving.scores import Scores, best
from tml.projects.light_ranker.serving.session import open_graph
from tml.projects.light_ranker.serving.signature import INT8_MODEL_NAME, MODEL_NAME, Signature, read_signature


class Scorer:
    """Scores candidates of a user with ONNX Runtime; several threads may call it at once.

    Args:
        folder: written by `export_ranker`.
        num_threads: threads of one call.
        int8: use the graph in 8 bits, if the export holds one.
        verify: compare the SHA-256 of every file with the signature first; False looks at sizes only.

    Attributes:
        signature: features, defaults, calibration, metrics and version of the model.

    Raises:
        ConfigError: 8 bits are asked for and not there.
        DataError: this is no exported ranker, or a file is missing, cut off, changed or foreign.
    """

    def __init__(
        self, folder: str | os.PathLike[str], num_threads: int = 2, *, int8: bool = False, verify: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.signature: Signature = read_signature(self.folder, verify=verify)
        self._features = {side: by_column(f for f in self.signature.features if f.side == side) for side in SIDES}
        self._encoder = Encoder.load(self.folder)
        self._columns = {side: self._encoder.columns(side) for side in SIDES}
        # Of the user, and keys of a candidate's feature: repeated for every candidate.
        self._shared = [name for name in self._columns["candidate"] if name not in self._features["candidate"]]
        self._graph = open_graph(self.folder / _graph_name(self.signature, int8, self.folder), num_threads)
        self._inputs = {value.name for value in self._graph.get_inputs()}

    def score(
        self,
        user: Mapping[str, Any],
        candidates: Candidates,
        top_k: int | None = None,
    ) -> Scores:
        """Score the candidates of one user.

        Args:
            user: the user's features; absent or None ones take their default.
            candidates: one mapping per candidate, or one sequence per feature, or an Arrow table.
            top_k: also name the best candidates.

        Returns:
            Probabilities `[N]`, watch times if the model predicts them, and the best `top_k`.

        Raises:
            DataError: a feature that the model does not have or that belongs to the other side, a value of the wrong
                type, NaN or infinite; it names feature, row and value.
            NonFiniteError: a score came out NaN or infinite.
        """
        candidate_columns, num_candidates = columns_of(candidates, self._features["candidate"])
        user_columns = row_columns(user, self._features["user"])
        shared = {name: user_columns[name] for name in self._shared if name in user_columns}
        repeated = {name: value.take(pa.array(np.zeros(num_candidates, np.int64))) for name, value in shared.items()}
        encoded = self._encode({**candidate_columns, **repeated}, "candidate", num_candidates)
        return self.score_encoded(self._encode(user_columns, "user", 1), encoded, top_k)

    def score_encoded(self, user: EncodedRows, candidates: EncodedRows, top_k: int | None = None) -> Scores:
        """Score encoded features, the hot path.

        Args:
            user: the user side of one row; or of as many rows as there are candidates, each with a user of its own.
            candidates: the candidate side of `N` rows.
            top_k: also name the best candidates.

        Raises:
            NonFiniteError: a score came out NaN or infinite.
        """
        if not len(candidates.ids):
            # Operators of a graph need not take tensors without rows.
            return self._no_scores(top_k)
        feed = graph_inputs(user, candidates, self._inputs)
        outputs = dict(zip(self.signature.outputs, self._graph.run(self.signature.outputs, feed), strict=True))
        for name, values in outputs.items():
            check_finite(name, values)
        top = None if top_k is None else best(outputs["logit"], top_k)
        return Scores(outputs["probability"], outputs.get("watch_time"), top)

    def score_rows(self, rows: pa.Table | pa.RecordBatch) -> Scores:
        """Score rows that hold a user and a candidate each, such as those of a table.

        Values are taken as `prepare` takes them: NaN is a missing number, for instance, but not within a vector.

        Args:
            rows: features by column; columns of no feature are left alone, absent features take their default.

        Raises:
            DataError: a value of the wrong type or infinite; names feature, row and value.
            NonFiniteError: as in `score`.
        """
        columns = {name: rows.column(name) for name in rows.schema.names}
        user, candidates = (self._encode(columns, side, rows.num_rows) for side in SIDES)
        return self.score_encoded(user, candidates)

    def _no_scores(self, top_k: int | None) -> Scores:
        watch_time = np.empty(0, np.float32) if "watch_time" in self.signature.outputs else None
        return Scores(np.empty(0, np.float32), watch_time, None if top_k is None else np.empty(0, np.int64))

    def _encode(self, columns: Mapping[str, Any], side: Side, num_rows: int) -> EncodedRows:
        absent = {name: pa.nulls(num_rows) for name in self._columns[side] if name not in columns}
        return self._encoder.encode({**columns, **absent}, side)


def _graph_name(signature: Signature, int8: bool, folder: Path) -> str:
    if int8 and INT8_MODEL_NAME not in signature.files:
        raise ConfigError(
            "the export holds no graph in 8 bits", where=folder, limit=f"a folder with {INT8_MODEL_NAME}",
            fix="export with --int8, or leave int8 out",
        )  # fmt: skip
    return INT8_MODEL_NAME if int8 else MODEL_NAME


def graph_inputs(user: EncodedRows, candidates: EncodedRows, names: set[str]) -> dict[str, NDArray[Any]]:
    """The graph's inputs by name; those without columns are no inputs."""
    inputs = {
        f"{side}_{kind}": getattr(rows, kind)
        for side, rows in zip(SIDES, (user, candidates), strict=True)
        for kind in ("ids", "continuous", "vectors")
    }
    return {name: values for name, values in inputs.items() if name in names}


def check_finite(name: str, values: NDArray[np.float32]) -> None:
    """Refuse NaN and infinite scores.

    Raises:
        NonFiniteError: naming the first row.
    """
    # One pass in the good case: the sum of finite float32 values stays finite in float64.
    if np.isfinite(np.sum(values, dtype=np.float64)):
        return
    row = int(np.flatnonzero(~np.isfinite(values))[0])
    raise NonFiniteError(
        "a score is not finite", where=f"{name}, row {row}", value=float(values[row]), limit="finite scores",
        fix="look for values far outside those of the training data in this row",
    )  # fmt: skip
