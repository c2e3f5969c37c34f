"""DCP's file storage with checksums on the way out and without arbitrary unpickling on the way in."""

from __future__ import annotations

import io
import pickle
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from tml.common.checkpointing.layout import METADATA_NAME, FileRecord
from tml.common.errors import CheckpointError

# Saving without a process group is what a single process does; DCP finds it worth a warning each time.
warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)", category=UserWarning)


class ChecksummedFile(io.RawIOBase):
    """A file that is only written forward and knows the CRC-32 of what passed through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self.crc32 = 0

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        self._file.write(data)
        num_bytes = memoryview(data).nbytes
        self.crc32 = zlib.crc32(data, self.crc32)
        self.size += num_bytes
        return num_bytes

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def writable(self) -> bool:
        """Always."""
        return True

    def flush(self) -> None:
        """Hand buffered bytes to the operating system."""
        if not self._file.closed:
            self._file.flush()

    def fileno(self) -> int:
        """Descriptor of the file below, after a flush, for fsync."""
        self.flush()
        return self._file.fileno()


class ChecksummingFileSystem(FileSystem):
    """DCP's file system; `records` maps the name of each file written to its size and checksum."""

    def __init__(self) -> None:
        self.records: dict[str, FileRecord] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        """Open a file; on leaving, record what was written."""
        if mode != "wb":
            raise ValueError(f"this file system only writes, got mode {mode!r}")
        with Path(path).open("wb") as file:
            stream = ChecksummedFile(cast(BinaryIO, file))
            yield stream
            stream.flush()
        self.records[Path(path).name] = FileRecord(stream.size, stream.crc32)

    def rename(self, path: Any, new_path: Any) -> None:
        """Rename a file and its record."""
        super().rename(path, new_path)
        self.records[Path(new_path).name] = self.records.pop(Path(path).name)


class ChecksummingWriter(FileSystemWriter):
    """Writes one fsynced data file per rank; failures name rank, path and free space."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
        self.fs = files = ChecksummingFileSystem()
        self._folder, self._rank = folder, rank
        # Sizes and checksums of the files this rank has written.
        self.records = files.records

    def storage_meta(self) -> StorageMeta | None:
        """Nothing: the default would put a path of this machine into the checkpoint."""
        return None

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's blocks."""
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise write_failure(self._folder, self._rank, error) from error


def write_failure(folder: Path, rank: int, error: BaseException) -> CheckpointError:
    """The error for a failed write: rank, path, the system's reason and the space left."""
    path = getattr(error, "filename", None) or folder
    return CheckpointError(
        "writing a checkpoint failed; nothing was committed",
        where=f"rank {rank}, {path}",
        value=f"{type(error).__name__}: {error}",
        limit=f"free space there: {free_space(folder)}",
        fix="free space or mend the file system; the checkpoints before this one are untouched",
    )


def free_space(folder: Path) -> str:
    """Free space of the file system that holds a folder, in GiB, as text."""
    try:
        return f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB"
    except OSError as error:
        return f"unknown ({error})"


# All that DCP's table of contents of a checkpoint with nothing but tensors is made of.
_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            # How some builds of Python 3.11 pickle the member of an enum.
            return _memory_format_member
        if module == "torch":
            found = getattr(torch, name, None)
            if found is torch.Size or isinstance(found, torch.dtype):
                return found
        raise CheckpointError(
            "the checkpoint's table of contents asks for something that has no place there",
            value=f"{module}.{name}",
            limit="tensor metadata only",
            fix="do not load this checkpoint: it was not written by this program, or was tampered with",
        )


def _memory_format_member(owner: Any, name: str) -> Any:
    if owner is not _MEM_FORMAT_ENCODING:
        raise CheckpointError(
            "the checkpoint's table of contents asks for something that has no place there",
            value=f"{owner!r}.{name}",
            limit="tensor metadata only",
            fix="do not load this checkpoint: it was not written by this program, or was tampered with",
        )
    return _MEM_FORMAT_ENCODING[name]


def load_metadata(folder: Path) -> Metadata:
    """Read DCP's `.metadata`, a pickle, allowing nothing but the classes of tensor metadata.

    Raises:
        CheckpointError: it refers to anything else or cannot be read.
    """
    path = folder / METADATA_NAME
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except CheckpointError as error:
        raise CheckpointError(error.what, where=path, value=error.value, limit=error.limit, fix=error.fix) from None
    except Exception as error:
        raise CheckpointError("the table of contents cannot be read", where=path, value=str(error)) from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError("not a table of contents", where=path, value=type(metadata).__name__)
    return metadata


class TrustedReader(FileSystemReader):
    """Reads tensors, with `weights_only`, from the files that the commit record vouches for and from no others."""

    def __init__(self, folder: Path, metadata: Metadata, files: Mapping[str, FileRecord]) -> None:
        super().__init__(folder)
        self._metadata = metadata
        for index, info in metadata.storage_data.items():
            if info.relative_path not in files:
                raise CheckpointError(
                    "a tensor lies in a file that was not committed",
                    where=folder / METADATA_NAME,
                    value=f"{index.fqn} in {info.relative_path}",
                    limit=f"one of {sorted(files)}",
                )

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The table of contents given at construction."""
        return self._metadata
