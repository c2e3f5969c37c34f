import pytest

from tml.machines import MachinesError, TaskEnvironment, task_environment
from tml.machines.environment import first_host

TORCHRUN = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "host0", "MASTER_PORT": "29500",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "123456", "SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}  # fmt: skip


def test_without_any_variables_we_are_the_only_process():
    assert task_environment({}) == TaskEnvironment(
        role="chief", rank=0, local_rank=0, world_size=1, local_world_size=1, node_rank=0, num_nodes=1, launcher="none"
    )
    assert task_environment({}).is_rank_zero


def test_torchrun_variables_say_who_we_are():
    task = task_environment(TORCHRUN)
    assert task == TaskEnvironment("chief", 5, 1, 8, 4, 1, 2, "torchrun", "host0", 29500)
    assert task.as_torchrun_variables().items() <= TORCHRUN.items()


def test_numbers_of_nodes_are_worked_out_where_torchrun_does_not_say():
    task = task_environment({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"})
    assert (task.num_nodes, task.node_rank) == (2, 1)
    task = task_environment({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"})
    assert (task.num_nodes, task.node_rank, task.local_world_size) == (1, 0, 2)


def test_slurm_step_says_who_we_are():
    task = task_environment(SLURM)
    assert task == TaskEnvironment("chief", 6, 2, 7, 3, 1, 2, "slurm", "gpu03", 23456)
    assert task.as_torchrun_variables()["MASTER_ADDR"] == "gpu03"
    assert task.as_torchrun_variables()["WORLD_SIZE"] == "7"


def test_a_slurm_batch_script_is_one_process():
    batch = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}
    assert task_environment(batch).world_size == 1


def test_torchrun_inside_slurm_wins():
    assert task_environment(SLURM | TORCHRUN).rank == 5


@pytest.mark.parametrize(
    ("variables", "role"),
    [
        ({"TASK_TYPE": "datasetworker"}, "dataset_worker"),
        ({"SPEC_TYPE": "dataset-dispatcher"}, "dataset_dispatcher"),
        ({"SPEC_TYPE": "Chief"}, "chief"),
        ({"TASK_TYPE": "evaluator", "SPEC_TYPE": "chief"}, "evaluator"),
        ({"TASK_TYPE": ""}, "chief"),
    ],
)
def test_role_comes_from_the_scheduler(variables, role):
    task = task_environment(variables)
    assert task.role == role
    assert task.is_rank_zero == (role == "chief")


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_18_a_missing_variable_is_named_with_the_fix(name):
    variables = {key: value for key, value in TORCHRUN.items() if key != name}
    with pytest.raises(MachinesError) as caught:
        task_environment(variables)
    assert f"environment variable {name} is not set" in str(caught.value)
    assert "start with torchrun or tml launch" in str(caught.value)


def test_18_local_rank_alone_is_refused():
    with pytest.raises(MachinesError, match="RANK is not set, but LOCAL_RANK is set"):
        task_environment({"LOCAL_RANK": "0"})


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("RANK", "8", "0 <= RANK < WORLD_SIZE = 8"),
        ("LOCAL_RANK", "4", "0 <= LOCAL_RANK < LOCAL_WORLD_SIZE = 4"),
        ("WORLD_SIZE", "0", "WORLD_SIZE >= 1"),
        ("RANK", "one", "a whole number"),
        ("MASTER_PORT", "-1", "a whole number"),
    ],
)
def test_18_a_wrong_variable_is_named_with_value_and_limit(name, value, limit):
    with pytest.raises(MachinesError) as caught:
        task_environment(TORCHRUN | {name: value})
    assert f"environment variable {name} is not right" in str(caught.value)
    assert limit in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[03-07,9],cpu1", "gpu03"), ("a-1,a-2", "a-1"), ("n[7]", "n7"), ("x", "x"), ("", "localhost")],
)
def test_first_host_of_a_slurm_list(nodes, host):
    assert first_host(nodes) == host
