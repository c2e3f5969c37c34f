"""Files by path or URL: local paths go straight to the operating system, others through fsspec."""

from tml.common.filesystem.atomic import atomic_write, sync_path, write_json, write_text
from tml.common.filesystem.atomic_folder import new_folder
from tml.common.filesystem.filesystem import (
    exists,
    glob_files,
    is_remote,
    list_dir,
    make_dirs,
    open_file,
    remove_tree,
)

__all__ = [
    "atomic_write",
    "exists",
    "glob_files",
    "is_remote",
    "list_dir",
    "make_dirs",
    "new_folder",
    "open_file",
    "remove_tree",
    "sync_path",
    "write_json",
    "write_text",
]
