"""The model card: where a model comes from, what it is and how good it is; for machines and for people."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tml
from tml.common.versions import library_versions
from tml.projects.twhin.model_folder import ModelInfo, score_formula

_DETAILS = re.compile(r"\b(relation|raw|lhs|rhs)\.")
_LIBRARIES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "pyarrow", "numpy")


def build_card(info: ModelInfo, given: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a model.

    Args:
        info: the model.
        given: what only the run knows, such as `config`, `metrics` by split, `data`, `step`; wins over what is here.

    Returns:
        JSON-able: the given keys, and `created`, `versions`, `git_commit`, `score`, `tables`, `relations`.
    """
    tables = {name: {"num_rows": table.num_rows, "id_type": table.id_type, "sha256": _sha256(info, name)}
              for name, table in info.tables.items()}  # fmt: skip
    body = info.to_json()
    card = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"tml": tml.__version__, **library_versions(*_LIBRARIES)},
        "git_commit": git_commit(),
        "score": score_formula(info.comparator, info.relations, info.reciprocal),
        "dim": info.dim,
        "comparator": info.comparator,
        "tables": tables,
        "relations": body["relations"],
    }
    return card | dict(given)


def readable_card(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    lines = ["# Model card", "", f"TwHIN embeddings of {card['dim']} dimensions, exported {card['created']}."]
    if card.get("step") is not None:
        lines[-1] += f" Checkpoint of step {card['step']}."
    lines += ["", "## Score", "", *[f"- {line}" for line in card["score"]], ""]
    lines += ["## Tables", "", "| table | rows | ids |", "|---|---|---|"]
    lines += [f"| {name} | {table['num_rows']:,} | {table['id_type']} |" for name, table in card["tables"].items()]
    lines += ["", "## Relations", "", "| relation | lhs | rhs | operator |", "|---|---|---|---|"]
    lines += ["| {name} | {lhs} | {rhs} | {operator} |".format(**relation) for relation in card["relations"]]
    lines += ["", "## Metrics", "", *_metric_lines(card.get("metrics") or {})]
    for title, key in (("Data", "data"), ("Config", "config")):
        if card.get(key):
            lines += ["", f"## {title}", "", "```json", json.dumps(card[key], indent=1, ensure_ascii=False), "```"]
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    lines += ["", "## Made with", "", f"{versions}; commit {card['git_commit'] or 'unknown'}."]
    lines += ["", "## Use", "", "```python", *_USE, "```", ""]
    return "\n".join(lines)


_USE = (
    "from tml.projects.twhin.serving import load_model",
    "",
    'model = load_model("<this folder>")',
    "model.get_embedding(table, [id, ...])",
    "model.neighbors(table, id, relation, k=10)",
    "model.predict_relation(lhs_id, rhs_id, relation)",
)


def git_commit() -> str | None:
    """The commit of the checkout that tml runs from, with `+changes` if files differ; None outside a checkout."""
    root = Path(tml.__file__).resolve().parent
    top = _git(root, "rev-parse", "--show-toplevel")
    # An installed package may lie inside some other repository, whose commit says nothing about tml.
    if top is None or Path(top).resolve() != root:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _sha256(info: ModelInfo, table: str) -> str:
    return info.tables[table].files["parquet"].sha256


def _metric_lines(metrics: Mapping[str, Any]) -> list[str]:
    flat = {name: value for name, value in _flat(metrics).items() if not _DETAILS.search(name)}
    if not flat:
        return ["Not evaluated."]
    rows = [f"| {name} | {value:.6g} |" for name, value in flat.items() if isinstance(value, int | float)]
    return ["| metric | value |", "|---|---|", *rows, "", "Sides, relations and raw ranks are in model_card.json."]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
