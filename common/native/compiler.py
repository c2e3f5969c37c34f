"""Compiles the C++ kernels of one CPU process on first use, for the processor at hand, and keeps the result.

    library = compiled(Path(__file__).parent / "rows.cpp")
    if library is not None:
        library.tml_look_up(...)

Kernels are plain C functions on pointers, called by ctypes (which gives up the interpreter's lock meanwhile): no
headers of torch or Python are needed, and a compilation takes seconds. Without a compiler there is no kernel, and
callers do the same work with torch's operations, more slowly.

Environment:
    TML_NATIVE: `0` switches the kernels off.
    CXX: the compiler; default `c++`.
    XDG_CACHE_HOME: what is compiled lies in `tml/native` below; default `~/.cache`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

HEADERS = Path(__file__).parent

# No -ffast-math: infinities and NaN must come through, and sums keep the order that the sources give them. -fopenmp
# takes the OpenMP library that torch has loaded already, so both share their threads.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared")

_SECONDS = 120


@functools.cache
def compiled(source: Path) -> ctypes.CDLL | None:
    """The library made of one source file, or None where it cannot be made; the reason is logged once.

    Args:
        source: may include the headers beside this module.
    """
    if os.environ.get("TML_NATIVE") == "0":
        return None
    try:
        path = _build(source)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "%s is not compiled, torch's operations do its work more slowly: %s; fix: install a C++ compiler (g++, "
            "clang), or name it in CXX",
            source.name,
            _reason(error),
        )
        return None


def _build(source: Path) -> Path:
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    path = _cache() / f"{source.stem}-{_identity(source, compiler)}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under a name of its own first: several ranks may compile at the same time, and a killed one leaves no half file.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        result = Path(folder) / path.name
        command = [*compiler, *_FLAGS, f"-I{HEADERS}", str(source), "-o", str(result)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        os.replace(result, path)
    return path


def _identity(source: Path, compiler: list[str]) -> str:
    """Changes with all that the result depends on: sources, flags, compiler and processor."""
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, timeout=_SECONDS).stdout
    digest = hashlib.blake2b(digest_size=10)
    texts = [path.read_bytes() for path in (source, *sorted(HEADERS.glob("*.h")))]
    for text in (*texts, " ".join(_FLAGS).encode(), version, _processor()):
        digest.update(len(text).to_bytes(8) + text)
    return digest.hexdigest()


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    kinds = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(kinds)}))


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "tml" / "native"


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        text = error.stderr if isinstance(error.stderr, str) else (error.stderr or b"").decode(errors="replace")
        first = next((line for line in text.splitlines() if "error" in line), text.strip()[:200])
        return f"the compiler failed: {first}"
    return str(error)
