"""Memory, traffic and time of a made-up workload, worked by hand; what fits and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tml.common.errors import ConfigError, LaunchError
from tml.common.modules.table_layout import FusedOptimizerSpec, TableLayout, TableSpec
from tml.core.planning.cluster import Cluster
from tml.core.planning.memory import device_memory, host_memory, num_prefetch_batches
from tml.core.planning.plan import make_plan, require_fit
from tml.core.planning.report import plan_as_dict, plan_as_text
from tml.core.planning.step_time import MeasuredCosts, step_time
from tml.core.planning.traffic import all_to_all, exchanges, ring, rows_only_exchanges
from tml.core.planning.workload import DenseParameters, HeadWork, HostWork, Workload
from tml.machines import Machine

GIB, DIM, IDS = 2**30, 64, 1000
ADAGRAD = FusedOptimizerSpec("rowwise_adagrad", 0.1)
HEAD = HeadWork(flops=1e9, memory_bytes=1e8, cached_bytes=1e7, num_scores=1e6, num_operations=100,
                activation_bytes=5e6)  # fmt: skip
HOST = HostWork(batch_bytes=1e6, make_seconds=1e-3, decode_seconds=2e-3, window_bytes=3e7)


def _workload(num_ranks: int = 1, rows: int = 10_000, **changes) -> Workload:
    work = Workload(
        project="toy", unit="examples", num_ranks=num_ranks, global_batch=1000, num_ids=IDS, head=HEAD, host=HOST,
        layout=TableLayout([TableSpec("nodes", rows, DIM, ADAGRAD)]), dense=(DenseParameters(500, 2),),
        matmul="fp32", num_operations=10, num_prefetch_batches=None, overlaps_ids=True, checkpoint_copies=0,
    )  # fmt: skip
    return replace(work, **changes)


def _cluster(nodes: int = 1, devices: int = 8, **fields) -> Cluster:
    return Cluster.of(Machine(mem=512 * GIB, cpu=64, num_accelerators=devices, accelerator_type="h100",
                              replicas=nodes, **fields))  # fmt: skip


def _processor(cores: int = 2, ranks: int = 1, mem: int = 8 * GIB) -> Cluster:
    return Cluster.of(Machine(mem=mem, cpu=cores), cpu_ranks=ranks)


def test_memory_of_a_device_part_by_part():
    work, cluster = _workload(8, rows=10_001), _cluster()
    parts = device_memory(work, cluster).parts
    assert parts["tables"] == 1251 * DIM * 4
    assert parts["optimizer states of tables"] == 1251 * 4
    assert parts["looked-up rows and their gradient"] == 2 * IDS * DIM * 4
    assert parts["partial sums of all ranks' rows"] == 8 * IDS * DIM * 4
    assert parts["dense parameters, gradients, states"] == 500 * (3 + 2) * 4
    assert parts["batches"] == 3e6
    assert parts["reserve (context, buffers, gaps)"] == pytest.approx(8e9)


@pytest.mark.parametrize(
    ("kind", "state"), [("sgd", 0), ("rowwise_adagrad", 4), ("adagrad", 4 * DIM), ("adam", 8 * DIM)]
)
@pytest.mark.parametrize(("data_type", "size"), [("fp32", 4), ("fp16", 2)])
def test_rows_and_states_follow_type_and_optimizer(kind, state, data_type, size):
    layout = TableLayout([TableSpec("nodes", 100, DIM, FusedOptimizerSpec(kind, 0.1), data_type)])
    parts = device_memory(_workload(1, layout=layout), _cluster(devices=1)).parts
    assert parts["tables"] == 100 * DIM * size
    assert parts.get("optimizer states of tables", 0) == 100 * state


def test_a_processor_holds_the_reader_and_the_process_too():
    parts = device_memory(_workload(), _processor()).parts
    assert parts["reader (two windows)"] == 2 * HOST.window_bytes
    assert parts["batches being made"] == HOST.batch_bytes
    assert host_memory(_workload(), _processor()) is None
    of_node = host_memory(_workload(8, checkpoint_copies=1), _cluster())
    assert of_node is not None
    assert of_node.parts["checkpoint under way"] == 8 * (1250 * (DIM * 4 + 4))


@pytest.mark.parametrize(
    ("cluster", "wanted", "number"),
    [(_processor(2), None, 0), (_processor(4), None, 2), (_cluster(), None, 2), (_processor(2), 5, 5)],
)
def test_batches_are_made_ahead_as_the_loop_does(cluster, wanted, number):
    assert num_prefetch_batches(_workload(num_prefetch_batches=wanted), cluster) == number


def test_bytes_of_collectives_on_links_and_network():
    alone, node, nodes = _cluster(devices=1), _cluster(), _cluster(nodes=4)
    assert ring(100.0, alone).device_link == all_to_all(100.0, alone).network == 0
    assert (ring(800.0, node).device_link, ring(800.0, node).network) == (700, 0)
    assert (ring(3200.0, nodes).device_link, ring(3200.0, nodes).network) == (3100, 3100)
    sent = all_to_all(320.0, nodes)
    assert (sent.device_link, sent.network) == (70, 8 * 240)


def test_bags_carry_the_rows_of_all_ranks_where_sequences_carry_their_own():
    cluster, work = _cluster(nodes=2), _workload(16)
    bags, rows = exchanges(work, cluster), rows_only_exchanges(work, cluster)
    assert bags.rows.device_link == 15 * IDS * DIM * 4
    assert rows.rows.device_link == IDS * DIM * 4 * 7 / 16
    assert bags.ids == rows.ids
    assert bags.dense.network == 2 * 500 * 4 * 15 / 16


def test_a_step_on_one_processor_is_the_sum_of_its_phases():
    work, cluster = _workload(), _processor()
    time = step_time(work, cluster)
    assert set(time.lanes) == {"device"}
    seconds = {phase.name: phase.seconds for phase in time.phases}
    assert time.seconds == pytest.approx(sum(seconds.values()))
    assert seconds["make batch"] == HOST.make_seconds
    assert seconds["read and decode"] == HOST.decode_seconds / 2
    assert seconds["matrix products"] == HEAD.flops / cluster.rates.flops("fp32")
    assert not any("send" in name for name in seconds)


def test_what_was_measured_replaces_what_was_computed():
    work, cluster = _workload(), _processor()
    computed = {phase.name: phase.seconds for phase in step_time(work, cluster).phases}
    products = HEAD.flops / cluster.rates.flops("fp32")
    assert computed["launch operations"] == pytest.approx(110 * cluster.rates.launch_seconds)
    costs = MeasuredCosts(1e-6, 3e-6, head=products + 2e-3)
    found = {phase.name: phase.seconds for phase in step_time(work, cluster, measured=costs).phases}
    assert found["look up rows"] == pytest.approx(1e-3)
    assert found["update rows"] == pytest.approx(3e-3)
    # A measured head has its own launches in it.
    assert found["launch operations"] == pytest.approx(10 * cluster.rates.launch_seconds)
    assert found["matrix products"] == products
    assert found["scores, loss, elementwise"] == pytest.approx(2e-3)
    assert found["make batch"] == computed["make batch"]
    # Some kernels multiply faster than the library whose rate was probed.
    fast = step_time(work, cluster, measured=replace(costs, head=products / 2))
    names = {phase.name: phase.seconds for phase in fast.phases}
    assert names["matrix products"] == products / 2
    assert "scores, loss, elementwise" not in names


def test_lanes_of_an_accelerator_run_side_by_side_and_the_longest_is_the_step():
    time = step_time(_workload(8), _cluster())
    assert time.seconds == max(time.lanes.values())
    assert time.bottleneck.name == "read and decode"
    assert time.bottleneck.resource == "host cores"
    fast = replace(HOST, make_seconds=0.0, decode_seconds=0.0)
    slow_head = replace(HEAD, flops=1e13)
    time = step_time(_workload(8, host=fast, head=slow_head), _cluster())
    assert time.bottleneck.name == "matrix products"
    assert time.seconds == pytest.approx(1e13 / (67e12 * 0.5), rel=0.05)


def test_threads_that_share_cores_take_turns():
    few = Cluster.of(Machine(mem=512 * GIB, cpu=8, num_accelerators=8, accelerator_type="h100"))
    assert step_time(_workload(8), few).lane("batches") == pytest.approx(3 * (1e-3 + 2e-3))
    assert step_time(_workload(8), _cluster()).lane("reader") == 2e-3


def test_a_slower_network_moves_the_bottleneck():
    work = _workload(32, host=replace(HOST, make_seconds=0.0, decode_seconds=0.0), num_ids=100_000)
    plans = [make_plan(lambda *_: work, _cluster(nodes=4, rates=rates)) for rates in (None, {"network": 10**9})]
    assert plans[1].time.seconds > 10 * plans[0].time.seconds
    assert plans[1].time.bottleneck.resource == "device link or network"
    assert any("EmbeddingCollection" in line for line in plans[1].advice)


def _build(rows: int):
    def build(cluster, global_batch=None):
        num_ranks = cluster.num_ranks
        batch = 1000 * 8 if global_batch is None else global_batch
        if batch % num_ranks:
            raise ConfigError("a batch cannot be shared evenly among the ranks", value=batch)
        return _workload(num_ranks, rows, global_batch=batch, num_ids=batch // num_ranks * 4)

    return build


def test_tables_are_cut_row_wise_and_torchrecs_planner_agrees_with_the_arithmetic():
    plan = make_plan(_build(4_000_000), _cluster())
    (table,) = plan.tables.trained
    assert (table.sharding_type, table.num_shards, table.shard_rows) == ("row_wise", 8, 500_000)
    assert table.planner_seconds is not None
    assert plan.tables.proposed
    assert plan.tables.refusal is None
    (local,) = make_plan(_build(1000), _processor()).tables.trained
    assert (local.sharding_type, local.shard_rows) == ("local", 1000)


def test_on_processors_the_planner_says_what_it_lacks():
    tables = make_plan(_build(100_000), _processor(cores=8, ranks=2)).tables
    assert tables.trained[0].sharding_type == "row_wise"
    assert tables.trained[0].shard_rows == 50_000
    assert tables.refusal is not None
    assert "row_wise" in tables.refusal
    assert tables.proposed[0].sharding_type != "row_wise"


def test_what_does_not_fit_is_refused_with_what_would():
    rows = 5_000_000_000  # 1.3 TB on 8 x 80 GB
    plan = make_plan(_build(rows), _cluster())
    assert not plan.fits
    with pytest.raises(LaunchError, match=r"(?s)does not fit.*each device.*too much.*4 nodes \(32 devices\)") as caught:
        require_fit(plan)
    needed = plan.device.total - plan.device.limit
    assert f"{needed / GIB:.4g} GiB too much" in str(caught.value)
    larger = make_plan(_build(rows), _cluster(nodes=4))
    require_fit(larger)
    assert make_plan(_build(rows), _cluster(nodes=2)).fits is False


def test_half_the_bytes_are_advised_where_they_suffice():
    plan = make_plan(_build(2_500_000_000), _cluster())  # 80 GB a device, of which 72 are free
    assert any("fp16" in line for line in plan.advice)


def test_a_smaller_batch_is_advised_where_the_batch_is_what_is_too_large():
    def build(cluster, global_batch=None):
        batch = 2**20 if global_batch is None else global_batch
        head = replace(HEAD, activation_bytes=batch * 2e5)
        return _workload(cluster.num_ranks, global_batch=batch, head=head)

    plan = make_plan(build, _cluster())
    assert [line for line in plan.advice if "global batch of 262,144" in line]


def test_a_host_that_is_too_small_is_named():
    work = _workload(8, host=replace(HOST, window_bytes=1e11))
    plan = make_plan(lambda *_: work, _cluster())
    with pytest.raises(LaunchError, match=r"(?s)each host.*hosts with"):
        require_fit(plan)


def test_a_model_without_tables_has_a_plan():
    plan = make_plan(lambda *_: _workload(8, layout=None, num_ids=0), _cluster(), num_examples=5000)
    assert plan.tables.trained == ()
    assert plan.exchanges.rows.device_link == 0
    assert plan.epoch_seconds == pytest.approx(5 * plan.time.seconds)
    assert "Tables: none" in plan_as_text(plan)


def test_the_report_says_in_words_what_the_dict_says_in_numbers():
    plan = make_plan(_build(4_000_000), _cluster(nodes=8), num_examples=10**9)
    text, values = plan_as_text(plan), plan_as_dict(plan)
    assert "toy on 8 x 8 h100" in text
    assert f"bottleneck: {values['step']['bottleneck']['name']}" in text
    assert "network of a node" in text
    assert values["bytes_per_step"]["network_of_node"] == plan.exchanges.total.network
    assert values["flops_per_step"] == {"device": 1e9, "all": 64e9}
    assert sum(p["seconds"] for p in values["step"]["phases"] if p["lane"] == "device") == pytest.approx(
        values["step"]["lanes"]["device"]
    )
    assert values["cluster"]["num_ranks"] == 64
    assert values["epoch_seconds"] == pytest.approx(10**9 / values["examples_per_second"])
