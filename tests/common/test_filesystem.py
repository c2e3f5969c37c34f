import os
import subprocess
import sys

import pytest

from tml.common.errors import DataError
from tml.common.filesystem import (
    atomic_write,
    exists,
    glob_files,
    is_remote,
    list_dir,
    make_dirs,
    open_file,
    remove_tree,
)
from tml.common.filesystem import remote as remote_files
from tml.common.filesystem.retry import Retry, may_pass, with_retry

NO_WAIT = Retry(attempts=3, first_wait=0.0)


@pytest.fixture
def folder(tmp_path):
    for name in ("part-1.parquet", "part-0.parquet", "notes.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "part-2.parquet").write_text("2")
    return tmp_path


@pytest.fixture
def memory():
    import fsspec

    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("gs://b/x", True), ("s3a://b", True), ("hdfs://h/x", True), ("/a/b", False), ("a:b", False), ("C://x", False),
     ("file:///a", False), ("~/x", False)],
)  # fmt: skip
def test_is_remote(path, expected):
    assert is_remote(path) is expected


def test_files_are_globbed_in_order_without_folders(folder):
    assert glob_files(folder / "*.parquet") == [str(folder / f"part-{i}.parquet") for i in (0, 1)]
    assert glob_files(f"{folder}/**/*.parquet")[0] == str(folder / "deep" / "part-2.parquet")
    assert [os.path.basename(path) for path in glob_files(folder)] == ["notes.txt", "part-0.parquet", "part-1.parquet"]
    assert glob_files(f"file://{folder}/part-0.parquet") == [str(folder / "part-0.parquet")]


def test_28_no_match_names_the_pattern_and_the_nearest_names(folder):
    with pytest.raises(DataError) as caught:
        glob_files(folder / "prat-*.parquet")
    said = str(caught.value)
    assert "no file matches" in said
    assert str(folder / "prat-*.parquet") in said
    assert str(folder / "part-0.parquet") in said


def test_28_no_match_below_a_missing_folder_names_its_nearest_sibling(folder):
    with pytest.raises(DataError, match=r"nearest names there: .*deep"):
        glob_files(folder / "depe" / "further" / "*.parquet")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no file matches"):
        glob_files(folder / "empty")


def test_28_names_that_are_not_near_are_not_named(tmp_path):
    for name in ("requirements", "projects", "core", "edges.parquet", "clicks.csv"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError) as caught:
        glob_files(tmp_path / "clicks.parquet")
    assert caught.value.fix == f"nearest names there: {tmp_path / 'clicks.csv'}"
    with pytest.raises(DataError) as caught:
        glob_files(tmp_path / "zzz" / "*.parquet")
    assert caught.value.fix == "check the path"


def test_a_missing_file_names_the_nearest(folder):
    with pytest.raises(DataError, match=r"(?s)no such file or folder.*note\.txt.*notes\.txt"):
        open_file(folder / "note.txt")
    with pytest.raises(DataError, match="no such file or folder"):
        list_dir(folder / "nowhere")


def test_text_is_utf_8_whatever_the_locale(tmp_path):
    with open_file(tmp_path / "x", "w") as file:
        file.write("é")
    assert (tmp_path / "x").read_bytes() == "é".encode()
    with open_file(tmp_path / "x", "r") as file:
        assert file.read() == "é"


def test_folders_are_made_listed_and_removed(tmp_path):
    make_dirs(tmp_path / "a" / "b")
    make_dirs(tmp_path / "a" / "b")
    (tmp_path / "a" / "x").touch()
    assert list_dir(tmp_path / "a") == [str(tmp_path / "a" / "b"), str(tmp_path / "a" / "x")]
    remove_tree(tmp_path / "a" / "x")
    assert not exists(tmp_path / "a" / "x")
    remove_tree(tmp_path / "a")
    remove_tree(tmp_path / "a")
    assert not exists(tmp_path / "a")


def test_removing_a_link_leaves_what_it_points_to(folder):
    os.symlink(folder / "deep", folder / "link")
    remove_tree(folder / "link")
    assert not os.path.lexists(folder / "link")
    assert exists(folder / "deep" / "part-2.parquet")


def test_atomic_write_replaces_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "x.json"
    with atomic_write(path, "w") as file:
        file.write("old")
        assert not path.exists()
    with pytest.raises(TypeError), atomic_write(path, "w") as file:
        file.writelines(["half", None])
    assert path.read_text() == "old"
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["x.json"]


def test_atomic_write_refuses_remote_paths():
    with pytest.raises(DataError, match="local"), atomic_write("gs://b/x"):
        pass


def test_remote_files_are_written_listed_read_and_removed(memory):
    make_dirs(f"{memory}/edges")
    for name in ("b", "a"):
        with open_file(f"{memory}/edges/{name}.txt", "w") as file:
            file.write(f"é{name}")
    with open_file(f"{memory}/edges/a.txt", "r") as file:
        assert file.read() == "éa"
    with open_file(f"{memory}/edges/b.txt") as file:
        assert file.read() == "éb".encode()
    found = glob_files(f"{memory}/edges/*.txt")
    assert [path.rsplit("/", 1)[1] for path in found] == ["a.txt", "b.txt"]
    assert all(path.startswith("memory://") for path in found)
    assert list_dir(f"{memory}/edges") == found
    with open_file(found[0]) as file:
        assert file.read() == "éa".encode()
    remove_tree(f"{memory}/edges")
    remove_tree(f"{memory}/edges")
    assert not exists(found[0])


def test_28_no_remote_match_names_the_pattern(memory):
    with pytest.raises(DataError, match=r"(?s)no file matches.*memory://bucket/\*\.parquet"):
        glob_files(f"{memory}/*.parquet")


def test_missing_remote_things_are_named_without_trying_again(memory, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("tried again"))
    with pytest.raises(DataError, match=r"(?s)no such remote file.*memory://bucket/x"):
        open_file(f"{memory}/x")
    with pytest.raises(DataError, match="no such file or folder"):
        list_dir(f"{memory}/nowhere")


@pytest.mark.parametrize("url", ["nonsense://x/y"])
def test_unknown_protocols_are_refused(url):
    with pytest.raises(DataError, match="unknown protocol"):
        open_file(url)


class _Flaky:
    """A remote file that fails, or ends early, a given number of times."""

    def __init__(self, content, faults):
        self.content, self.faults, self.opened = content, list(faults), 0

    def info(self, path):
        return {"size": len(self.content)}

    def open(self, path, mode):
        import io

        self.opened += 1
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        return io.BytesIO(self.content if fault is None else self.content[:fault])


@pytest.fixture
def flaky(monkeypatch):
    def flaky(faults):
        filesystem = _Flaky(b"0123456789", faults)
        monkeypatch.setattr(remote_files, "filesystem_of", lambda url: (filesystem, url))
        return filesystem

    return flaky


def _http_error(code):
    error = type("HttpError", (Exception,), {})(f"status {code}")
    error.code = code
    return error


def test_36_a_read_that_fails_for_a_while_is_tried_again_whole(flaky, caplog):
    filesystem = flaky([TimeoutError("slow"), 4])
    with open_file("gs://bucket/part-3.parquet", retry=NO_WAIT) as file:
        assert file.read() == b"0123456789"
    assert filesystem.opened == 3
    assert len(caplog.records) == 2
    assert "gs://bucket/part-3.parquet" in caplog.text
    assert "4 of 10 bytes came" in caplog.text


def test_36_a_read_that_keeps_failing_ends_at_the_limit_and_names_the_object(flaky):
    filesystem = flaky([_http_error(503)] * 9)
    with pytest.raises(DataError) as caught:
        open_file("gs://bucket/part-3.parquet", retry=NO_WAIT)
    said = str(caught.value)
    assert "could not read gs://bucket/part-3.parquet" in said
    assert "status 503" in said
    assert "tried 3 of 3 times" in said
    assert filesystem.opened == 3


def test_36_no_part_of_a_torn_read_is_ever_used(flaky):
    flaky([4] * 3)
    with pytest.raises(DataError, match="4 of 10 bytes came"):
        open_file("gs://bucket/x", retry=NO_WAIT)


def test_36_what_trying_again_cannot_mend_is_raised_at_once(flaky):
    for fault in (PermissionError("no"), FileNotFoundError("gone"), _http_error(403)):
        filesystem = flaky([fault] * 3)
        with pytest.raises((DataError, PermissionError)):
            open_file("gs://bucket/x", retry=NO_WAIT)
        assert filesystem.opened == 1


def test_36_waits_double_up_to_a_limit():
    waits, tries = [], []

    def fail():
        tries.append(1)
        raise OSError("x")

    with pytest.raises(DataError):
        with_retry(fail, "read x", Retry(attempts=6, first_wait=1.0, longest_wait=5.0), sleep=waits.append)
    assert len(tries) == 6
    for wait, least in zip(waits, [1, 2, 4, 5, 5], strict=True):
        assert least <= wait <= least * 1.25


@pytest.mark.parametrize(
    ("error", "expected"),
    [(_http_error(500), True), (_http_error(429), True), (_http_error(404), False), (OSError(), True),
     (EOFError(), True), (ValueError(), False), (KeyError(), False)],
)  # fmt: skip
def test_which_errors_may_pass(error, expected):
    assert may_pass(error) is expected


def test_local_files_need_no_fsspec(tmp_path):
    code = (
        "import sys; from tml.common.filesystem import *; f = open_file(sys.argv[1] + '/x', 'w'); f.close();"
        "glob_files(sys.argv[1]); print([m for m in ('fsspec', 'torch') if m in sys.modules])"
    )  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
