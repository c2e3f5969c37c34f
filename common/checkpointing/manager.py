"""`CheckpointManager`: what the training loop holds."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from tml.common.checkpointing import layout, retention
from tml.common.checkpointing.layout import Entry
from tml.common.checkpointing.lock import DirectoryLock
from tml.common.checkpointing.pieces import TensorPieces, pieces_of, pieces_to_save
from tml.common.checkpointing.ranks import Ranks
from tml.common.checkpointing.reading import Checkpoint, candidates, first_sound, require_directory
from tml.common.checkpointing.retention import Best
from tml.common.checkpointing.save import SaveJob, extra_as_json
from tml.common.checkpointing.whole_run import is_held
from tml.common.errors import CheckpointError

logger = logging.getLogger(__name__)


class CheckpointManager:
    """Saves and restores a run in one directory, on one process or on all ranks of a process group.

    Make it after `init_process_group`, on all ranks. All ranks call every method that says so, in the same order.

    Args:
        directory: a local or shared directory; made if it is missing.
        max_to_keep: how many checkpoints to keep beside the best one; None keeps all.
        async_save: write in the background; `save` returns once the tensors are copied to CPU memory.
        strict: a damaged newest checkpoint is an error instead of a reason to take the one before.
        lock: refuse to share the directory with another writer. Readers pass False. Within `lock_of_whole_run` it is
            the run that holds the lock.
        alone: this process reads by itself, whether or not it is one of several ranks; the others are not waited for.

    Raises:
        CheckpointError: the directory is a file, cannot be made, or is locked by a live job.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        max_to_keep: int | None,
        async_save: bool = False,
        strict: bool = False,
        lock: bool = True,
        alone: bool = False,
    ) -> None:
        if max_to_keep is not None and max_to_keep < 1:
            raise CheckpointError("max_to_keep is too small", value=max_to_keep, limit="1 or more, or None to keep all")
        self.directory = Path(directory)
        self.restored_step: int | None = None
        self._max_to_keep, self._strict = max_to_keep, strict
        self._ranks = Ranks.alone() if alone else Ranks.create()
        # The background thread talks to its peers while the main threads may be talking too: never over one group.
        self._background_ranks = (Ranks.alone() if alone else Ranks.create()) if async_save else None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if async_save else None
        self._pending: Future[None] | None = None
        self._pending_step: int | None = None
        self._written: set[int] = set()
        self._lock = DirectoryLock(self.directory) if lock and not is_held(self.directory) else None
        # Runs at close, or when the manager is forgotten, or at the end of the program.
        self._release = weakref.finalize(self, self._lock.release) if self._lock is not None else lambda: None
        self._ranks.run_on_first("opening the checkpoint directory", self._open)

    def _open(self) -> None:
        require_directory(self.directory)
        if self._lock is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()

    def save(self, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Save a step; called by all ranks. A step that this run has saved already is left as it is.

        Args:
            step: the number of steps done; not negative.
            tensors: plain tensors (equal on all ranks) and ShardedTensors by name, the same names on all ranks.
            extra: JSON values; those of rank 0 are kept. `extra["fingerprints"]` is copied into the commit record.

        Raises:
            CheckpointError: on all ranks, when one of them failed, now or in the background since the last call.
        """
        if self._pending is not None and not self._pending.done():
            logger.warning("step %d waits: the save of step %s is not done yet", step, self._pending_step)
        self.wait()
        if self._ranks.run_on_first("looking for the step", lambda: self._is_saved(step)):
            return
        job = self._ranks.run_everywhere("collecting tensors", lambda: self._job(step, tensors, extra))
        job.prepare()
        if self._executor is None or self._background_ranks is None:
            self._run(job)
            return
        background = self._background_ranks
        staged = self._ranks.run_everywhere("copying tensors", lambda: job.staged(background))
        self._pending, self._pending_step = self._executor.submit(self._run, staged), step

    def _is_saved(self, step: int) -> bool:
        if step not in self.steps():
            return False
        if self.restored_step is None or step == self.restored_step or step in self._written:
            return True
        # This run went back to an earlier step, so what stands here is damaged or of a future that never came.
        logger.warning(
            "replacing the checkpoint of step %d, written before this run resumed from %d", step, self.restored_step
        )
        return False

    def wait(self) -> None:
        """Wait for a background save; called by all ranks.

        Raises:
            CheckpointError: it failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def steps(self) -> list[int]:
        """The committed steps, ascending."""
        return sorted(entry.step for entry in layout.committed(self.directory))

    def latest(self) -> int | None:
        """The step that was committed last, or None. After going back to an earlier step it need not be the highest."""
        return next((entry.step for entry in layout.committed(self.directory)), None)

    def best(self) -> int | None:
        """The step marked as the best, or None."""
        record = self.best_record()
        return None if record is None else record.step

    def best_record(self) -> Best | None:
        """The best step with its metric and value, or None; survives restarts."""
        record = retention.read_best(self.directory)
        return record if record is not None and record.step in self.steps() else None

    def mark_best(self, step: int, metric: str, value: float) -> None:
        """Protect a committed step as the best one; called by all ranks. The one before loses its protection.

        Raises:
            CheckpointError: the step is not committed or the value not finite.
        """
        self.wait()
        best = Best(step, metric, float(value))
        self._ranks.run_on_first("marking the best step", lambda: retention.write_best(self.directory, best))

    def require_empty(self) -> None:
        """Refuse a directory with checkpoints, for a run that is not to resume; called by all ranks.

        Raises:
            CheckpointError: lists the steps present.
        """
        steps = self._ranks.run_on_first("looking for checkpoints", self.steps)
        if steps:
            raise CheckpointError(
                "the checkpoint directory is not empty",
                where=self.directory,
                value=f"steps present: {steps}",
                limit="no checkpoints, as the run is not to resume",
                fix="resume, or choose another save_dir; nothing has been changed",
            )

    def restore(
        self, tensors: Mapping[str, Tensor], step: int | None = None, *, only: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint into live tensors; called by all ranks. `restored_step` says afterwards which one it was.

        Args:
            tensors: as for `save`; on any number of ranks, sharded or not.
            step: a committed step; None takes the newest and, if it is damaged, the one before with a warning.
            only: load just these names of `tensors`.

        Returns:
            The extra data.

        Raises:
            CheckpointError: no such step, no sound checkpoint, or other names, sizes or dtypes. Nothing is loaded then.
        """
        self.wait()
        entries = self._ranks.run_on_first("looking for checkpoints", lambda: candidates(self.directory, step))
        return first_sound(
            entries, lambda entry: self._load(entry, tensors, only), strict=self._strict or step is not None
        )

    def restore_latest(self, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """`restore` if there is a checkpoint, else None; all ranks do what rank 0 sees."""
        if not self._ranks.run_on_first("looking for checkpoints", lambda: bool(layout.scan(self.directory))):
            return None
        return self.restore(tensors)

    def _load(self, entry: Entry, tensors: Mapping[str, Tensor], only: Collection[str] | None) -> dict[str, Any]:
        checkpoint = Checkpoint(entry, self._ranks)
        checkpoint.verify()
        views = self._ranks.run_everywhere("matching the checkpoint", lambda: _matching(checkpoint, tensors, only))
        checkpoint.read_into(views)
        self.restored_step = entry.step
        return self._ranks.run_on_first("reading the extra data", checkpoint.extra)

    def close(self) -> None:
        """Wait for a background save and release the lock; called by all ranks.

        Raises:
            CheckpointError: the background save failed; the lock is released all the same.
        """
        try:
            self.wait()
        finally:
            if self._executor is not None:
                self._executor.shutdown()
            self._release()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except CheckpointError as second:
            logger.error("while another error was on its way: %s", second)

    def _job(self, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> SaveJob:
        if step < 0:
            raise CheckpointError("a step cannot be negative", value=step, limit="0 or more")
        text = extra_as_json(extra)
        fingerprints = dict(extra.get("fingerprints") or {})
        return SaveJob(self.directory, step, pieces_to_save(tensors, self._ranks.rank), text, fingerprints, self._ranks)

    def _run(self, job: SaveJob) -> None:
        job.run()
        self._written.add(job.step)
        job.ranks.run_on_first("deleting old checkpoints", self._purge)

    def _purge(self) -> None:
        best = self.best()
        retention.purge(self.directory, self._max_to_keep, () if best is None else (best,))


def _matching(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], only: Collection[str] | None
) -> dict[str, TensorPieces]:
    views = {name: pieces_of(name, tensor) for name, tensor in tensors.items()}
    checkpoint.require_match(views, only)
    return {name: view for name, view in views.items() if only is None or name in only}
