"""The compiler of CPU kernels: what it keeps, when it compiles again, and what happens where it cannot."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import pytest

from tml.common.native import compiler

ANSWER = 'extern "C" int answer() {{ return {}; }}\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.compiled.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text(ANSWER.format(42))
    return path


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "tml" / "native").iterdir())


needs_compiler = pytest.mark.skipif(
    subprocess.run("command -v ${CXX:-c++}", shell=True, capture_output=True).returncode != 0,
    reason="no C++ compiler here",
)


@needs_compiler
def test_a_source_is_compiled_once_and_again_when_it_changes(source: Path, tmp_path: Path) -> None:
    library = compiler.compiled(source)
    assert library is not None
    assert library.answer() == 42
    (first,) = kept(tmp_path)
    made = first.stat().st_mtime_ns
    compiler.compiled.cache_clear()
    assert compiler.compiled(source) is not None
    assert first.stat().st_mtime_ns == made
    source.write_text(ANSWER.format(43))
    compiler.compiled.cache_clear()
    changed = compiler.compiled(source)
    assert changed is not None
    assert changed.answer() == 43
    assert len(kept(tmp_path)) == 2


def test_without_a_compiler_there_is_a_warning_that_says_what_to_do(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert compiler.compiled(source) is None
        assert compiler.compiled(source) is None
    (record,) = caplog.records
    assert "no-such-compiler" in record.getMessage()
    assert "install a C++ compiler" in record.getMessage()


@needs_compiler
def test_what_does_not_compile_leaves_nothing_behind_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("int answer( { return 42; }\n")
    with caplog.at_level(logging.WARNING):
        assert compiler.compiled(source) is None
    assert "error" in caplog.text
    assert kept(tmp_path) == []


def test_kernels_can_be_switched_off(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TML_NATIVE", "0")
    assert compiler.compiled(source) is None
    assert not caplog.records
