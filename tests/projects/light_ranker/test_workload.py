"""What a step is said to do, held against the model that does it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.projects.light_ranker.tiny_run import LOLLY, TinyData, config_of, tiny_settings, write_data
from tml.common.errors import DataError
from tml.common.modules import dense_kernel
from tml.common.modules.normalizers import Normalizer
from tml.core.planning.cluster import Cluster
from tml.machines import Machine
from tml.projects.light_ranker.calibration import Calibration
from tml.projects.light_ranker.data.dataset import RankerDataset, Share
from tml.projects.light_ranker.models.build import build_model, build_slots
from tml.projects.light_ranker.workload import build_workload, count_examples

INTERACTIONS = [None, {"kind": "dot"}, {"kind": "cross", "rank": 3}, {"kind": "fwfm"}]


def _ranks(number: int) -> Cluster:
    return Cluster.of(Machine(mem=8 * 2**30, cpu=2), cpu_ranks=number)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return write_data(tmp_path_factory.mktemp("data"))


def _run_parts(data: TinyData, config):
    """A model at its start and its first batch."""
    names = [feature.name for feature in data.spec.continuous]
    transforms = [feature.transform for feature in data.spec.continuous]
    ones = torch.ones(len(names), dtype=torch.float64)
    boundaries = {name: [1.0, 2.0] for name in names}
    calibration = Calibration(Normalizer(names, transforms, ones, ones, ones), boundaries, "test")
    slots = build_slots(config, data.spec, calibration, "cpu")
    batches = RankerDataset(config.train_data, data.spec, slots, Share(config.train_data.batch_size(1)))
    return build_model(config, slots, calibration, torch.device("cpu")), next(iter(batches))


@pytest.mark.parametrize("interaction", INTERACTIONS)
@pytest.mark.parametrize("heads", ["separate", "single_output"])
def test_operations_parameters_and_bytes_are_the_models_own(data, interaction, heads, monkeypatch):
    monkeypatch.setattr(dense_kernel, "can_run", lambda parts, layers: False)  # torch counts its own operations only
    changes = {"mlp": {"interaction": interaction, "heads": heads}}
    config = config_of(tiny_settings(data, "unused", model=changes))
    work = build_workload(config, _ranks(1))
    model, batch = _run_parts(data, config)
    with FlopCounterMode(display=False) as counter:
        loss, _ = model(batch)
        loss.backward()
    assert work.head.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert work.dense_numel == sum(tensor.numel() for tensor in model.dense_tensors().values())
    assert work.num_ids == len(batch.nodes.values())
    held = {name: t for name, t in batch.named_tensors().items() if not name.startswith("nodes.offsets")}
    assert work.host.batch_bytes == sum(t.numel() * t.element_size() for t in held.values())


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_a_probe_runs_the_models_own_head_without_data(data, interaction):
    config = config_of(tiny_settings(data, "unused", model={"mlp": {"interaction": interaction}}))
    work = build_workload(config, _ranks(1))
    by_rows, *by_parameters = work.head.run()
    assert work.head.run_share == 1
    assert by_rows.shape == (work.num_ids, 8)
    assert sum(gradient.numel() for gradient in by_parameters) == work.dense_numel
    assert all(gradient.isfinite().all() and gradient.any() for gradient in (by_rows, *by_parameters))


def test_a_large_batch_is_probed_by_a_part_of_it(data):
    config = config_of(tiny_settings(data, "unused"))
    large = build_workload(config, _ranks(1), 2**16)
    assert large.head.run_share == 1 / 4
    assert large.head.run()[0].shape == (large.num_ids / 4, 8)


def test_a_lolly_model_is_one_vector_of_replicated_weights(data):
    config = config_of(tiny_settings(data, "unused", **LOLLY))
    one, two = build_workload(config, _ranks(1)), build_workload(config, _ranks(2))
    assert one.layout is None
    assert (one.dense_numel, one.dense[0].num_states) == (2**12 + 1, 1)
    # Several ranks exchange the gradient of all weights, one only that of the ids of its batch.
    assert two.head.memory_bytes > one.head.memory_bytes / 2


def test_examples_are_counted_from_the_files_footers(data):
    assert count_examples(config_of(tiny_settings(data, "unused"))) == 4000
    half = config_of(tiny_settings(data, "unused", train_data={"keep_rate": 0.5}))
    assert count_examples(half) == 2000


def test_without_features_there_is_no_plan(data, tmp_path):
    settings = tiny_settings(data, "unused") | {"features_dir": str(tmp_path)}
    with pytest.raises(DataError, match="encoding"):
        build_workload(config_of(settings), _ranks(1))
