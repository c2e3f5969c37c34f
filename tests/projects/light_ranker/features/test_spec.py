"""The description of an encoded data set: its columns, its file, and what cannot be."""

from __future__ import annotations

import dataclasses
import json

import pyarrow as pa
import pytest

from tml.common.errors import DataError
from tml.projects.light_ranker.features.spec import (
    ContinuousFeature,
    DiscretizerSpec,
    FeatureSpec,
    IdFeature,
    LabelSpec,
    VectorFeature,
)

SPEC = FeatureSpec(
    ids=(IdFeature("user", "user", 12), IdFeature("topics", "candidate", 7, num_slots=3, pooling="mean")),
    continuous=(ContinuousFeature("age", "user", "z_score", DiscretizerSpec("hashing"), keep_value=False),),
    vectors=(VectorFeature("image", "candidate", 2),),
    labels=(LabelSpec("click", "binary"), LabelSpec("watch", "nonnegative")),
    has_group=True,
)


def test_columns_are_ids_then_numbers_then_labels():
    assert list(SPEC.columns()) == [
        "id.user", "id.topics.0", "id.topics.1", "id.topics.2", "x.age", "v.image.0", "v.image.1", "y.click", "y.watch",
        "w", "group",
    ]  # fmt: skip
    assert SPEC.columns()["id.topics.2"] == pa.int32()
    assert SPEC.columns()["x.age"] == pa.float32()


def test_ids_have_32_bits_where_they_fit():
    first, *others = SPEC.ids
    for num_rows, kind in ((2**31, pa.int32()), (2**31 + 1, pa.int64())):
        spec = dataclasses.replace(SPEC, ids=(dataclasses.replace(first, num_rows=num_rows), *others))
        assert (spec.columns()["id.user"], spec.columns()["id.topics.0"]) == (kind, pa.int32())


def test_slots_know_their_feature():
    assert SPEC.num_slots == 4
    assert SPEC.slot_features().tolist() == [0, 1, 1, 1]
    assert SPEC.num_vector_values == 2


def test_one_side_keeps_its_features_and_the_labels():
    candidate = SPEC.of_side("candidate")
    assert [feature.name for feature in candidate.features] == ["topics", "image"]
    assert candidate.labels == SPEC.labels


def test_a_saved_spec_loads_equal_from_file_and_folder(tmp_path):
    SPEC.save(tmp_path)
    assert FeatureSpec.load(tmp_path) == FeatureSpec.load(tmp_path / "encoding.json") == SPEC


def test_the_fingerprint_follows_vocabularies_but_not_places():
    def with_topics(**changes):
        return dataclasses.replace(SPEC, ids=(SPEC.ids[0], dataclasses.replace(SPEC.ids[1], **changes)))

    assert with_topics().fingerprint() == SPEC.fingerprint()
    assert with_topics(vocabulary_hash="other").fingerprint() != SPEC.fingerprint()
    places = [with_topics(embedding=path).fingerprint() for path in ("/a/topics.parquet", "/b/topics.parquet")]
    assert places[0] == places[1] != SPEC.fingerprint()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda d: d["ids"][0].update(side="item"), "user, candidate"),
        (lambda d: d["ids"][0].update(num_rows=1), "num_rows"),
        (lambda d: d["ids"][0].update(nmu_rows=1), "nmu_rows"),
        (lambda d: d["ids"][0].update(name="age"), "age"),
        (lambda d: d["ids"][0].update(name="topics.1"), "id.topics.1"),
        (lambda d: d["continuous"][0].update(discretizer=None), "keep_value"),
        (lambda d: d["labels"][0].update(kind="count"), "nonnegative"),
        (lambda d: d.update(format_version=99), "99"),
        (lambda d: d.pop("labels"), "labels"),
        (lambda d: d.update(ids=[3]), "cannot be read"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(tmp_path, change, names):
    values = SPEC.to_dict()
    change(values)
    path = tmp_path / "encoding.json"
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=names):
        FeatureSpec.load(path)


def test_a_cut_off_file_is_refused(tmp_path):
    path = tmp_path / "encoding.json"
    path.write_text(json.dumps(SPEC.to_dict())[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        FeatureSpec.load(path)
