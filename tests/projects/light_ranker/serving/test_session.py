"""How ONNX Runtime is asked to multiply bytes."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from tml.projects.light_ranker.serving import session


@pytest.mark.parametrize(("flags", "found"), [("avx512_vnni avx2", True), ("avx_vnni", True), ("avx2 fma", False)])
def test_the_processor_says_whether_it_multiplies_bytes(tmp_path: Path, flags: str, found: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags : fpu {flags}\n")
    assert session.has_byte_products(tmp_path / "cpuinfo") is found
    assert not session.has_byte_products(tmp_path / "no such file")


@pytest.mark.parametrize("has_byte_products", [True, False])
def test_exact_sums_of_bytes_are_asked_for_only_where_they_are_not_given(
    monkeypatch: pytest.MonkeyPatch, has_byte_products: bool
) -> None:
    asked: list[onnxruntime.SessionOptions] = []
    monkeypatch.setattr(session, "has_byte_products", lambda: has_byte_products)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, options, providers: asked.append(options))
    session.open_graph(Path("model.onnx"), 1)
    (options,) = asked
    if has_byte_products:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")
    else:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
