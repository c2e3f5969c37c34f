"""Real data, where the environment variable TML_DATA says that it lies."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.projects.twhin.convert_helpers import decoded, relations, run, vocabulary
from tml.projects.twhin.data.convert.options import RelationType


def _data(name: str) -> Path:
    folder = Path(os.environ.get("TML_DATA", "/nonexistent")) / name
    if not folder.is_dir():
        pytest.skip(f"needs {name} in the folder that TML_DATA names")
    return folder


def _rows(path: Path) -> list[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [line.rstrip("\n").split("\t") for line in stream]


def test_fb15k_237(tmp_path: Path) -> None:
    files = [_data("FB15k-237") / f"{split}.tsv.gz" for split in ("train", "valid", "test")]
    train, valid, test = map(str, files)
    meta = run(tmp_path / "out", train, valid=(valid,), test=(test,), single_table="entity")
    assert meta["edges"] == {"train": 272_115, "valid": 17_535, "test": 20_466}
    assert len(vocabulary(tmp_path / "out", "entity")) == 14_541
    assert len(relations(tmp_path / "out")) == 237
    for split, file in zip(("train", "valid", "test"), files, strict=True):
        assert decoded(tmp_path / "out", split) == Counter(("entity", h, r, "entity", t) for h, r, t in _rows(file))


def test_higgs_mention_and_reply(tmp_path: Path) -> None:
    file = _data("higgs-twitter-mention-reply") / "typed_edges.tsv.gz"
    declared = (RelationType("mention", "user", "user"), RelationType("reply", "user", "user"))
    fractions = (0.8, 0.1, 0.1)
    meta = run(tmp_path / "out", str(file), relations=declared, id_type="int", split_fractions=fractions)
    rows = _rows(file)
    assert meta["tables"]["user"]["size"] == 116_408
    per_relation = {r["name"]: r["train"] + r["valid"] + r["test"] for r in meta["relations"]}
    assert per_relation == {"mention": 150_818, "reply": 32_523}
    total = sum((decoded(tmp_path / "out", split) for split in ("train", "valid", "test")), Counter())
    assert total == Counter(("user", int(lhs), rel, "user", int(rhs)) for lhs, rel, rhs, _ in rows)
