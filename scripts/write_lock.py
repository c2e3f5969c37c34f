"""Turn pip's resolution report into a lock file: `write_lock.py REPORT NO_DEPS_LIST OUT`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HEADER = """\
# Written by scripts/lock.sh from {source}; edit that list, not this file.
# Complete: install with `pip install --no-deps -r {name}`, so that nothing else can be pulled in.
"""


def normalised(name: str) -> str:
    """The spelling under which an index files a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(path: Path) -> dict[str, str]:
    """The `name==version` lines of a requirements list."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {normalised(name): version for name, version in (line.split("==") for line in lines if line)}


def resolved_pins(report: Path) -> dict[str, str]:
    """Name to version of everything pip would install, without local labels such as `+cpu`."""
    packages = json.loads(report.read_text(encoding="utf-8"))["install"]
    metadata = [package["metadata"] for package in packages]
    return {normalised(entry["name"]): entry["version"].split("+")[0] for entry in metadata}


def main() -> None:
    """Write OUT: the resolved pins and those of NO_DEPS_LIST, in order of name."""
    report, no_deps, out = (Path(argument) for argument in sys.argv[1:4])
    pins = resolved_pins(report) | read_pins(no_deps)
    header = HEADER.format(source=out.with_suffix(".in").name, name=f"requirements/{out.name}")
    out.write_text(header + "".join(f"{name}=={pins[name]}\n" for name in sorted(pins)), encoding="utf-8")
    print(f"{out}: {len(pins)} packages")


if __name__ == "__main__":
    main()
