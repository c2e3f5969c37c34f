"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from tml.common.errors import DataError

_CPU_INFO = Path("/proc/cpuinfo")


def has_byte_products(cpu_info: Path = _CPU_INFO) -> bool:
    """Whether the processor has instructions that add products of bytes in 32 bits (x86: VNNI); False if unknown."""
    try:
        return "vnni" in cpu_info.read_text(encoding="utf-8")
    except OSError:
        return False


def open_graph(path: Path, num_threads: int) -> onnxruntime.InferenceSession:
    """A session that several threads may run at once.

    Args:
        path: of the graph; its tables lie beside it and are mapped, not read.
        num_threads: threads of one run.

    Raises:
        DataError: the file is no graph that this ONNX Runtime can run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not has_byte_products():
        # Pairs of products of bytes would be added in 16 bits there, and saturate. Slower, so only where it has to be.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own errors have no common base class
        raise DataError(
            "ONNX Runtime cannot load the model", where=path, value=str(error),
            limit=f"onnxruntime {onnxruntime.__version__}",
            fix="install the version that the signature names, or export the model again",
        ) from error  # fmt: skip
