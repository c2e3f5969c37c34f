from pathlib import Path

import pytest

import tml
from tml.machines import Machine, MachinesError, load_machines, parse_machines
from tml.machines.quantities import format_bytes, parse_bytes

GOOD = """\
chief:
  mem: 1.4Ti
  cpu: 24
  num_accelerators: 16
  accelerator_type: a100
dataset_worker: {mem: 14Gi, cpu: 2, replicas: 4}
"""


@pytest.fixture
def fault(tmp_path):
    def fault(text):
        path = tmp_path / "machines.yaml"
        path.write_text(text)
        with pytest.raises(MachinesError) as caught:
            load_machines(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    return fault


def test_roles_are_read_with_memory_in_bytes(tmp_path):
    path = tmp_path / "machines.yaml"
    path.write_text(GOOD)
    machines = load_machines(path)
    assert machines.roles == ("chief", "dataset_worker")
    assert machines.chief == Machine(mem=1539316278886, cpu=24, num_accelerators=16, accelerator_type="a100")
    assert machines["dataset_worker"] == Machine(mem=14 * 2**30, cpu=2, replicas=4)
    with pytest.raises(MachinesError, match="no such role"):
        machines["evaluator"]


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1024", 1024),
        ("2Ki", 2048),
        ("1.5k", 1500),
        ("512M", 512_000_000),
        ("1GiB", 2**30),
        ("3 T", 3 * 10**12),
        (7, 7),
    ],
)
def test_amounts_of_memory(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "much", "1.2.3Gi", "-1Gi", "0", "1Zi", "1gi", True])
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(ValueError, match="memory"):
        parse_bytes(text)


def test_bytes_are_shown_in_the_unit_that_fits():
    assert [format_bytes(n) for n in (0, 512, 2048, 1539316278886)] == ["0 B", "512 B", "2 KiB", "1.4 TiB"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_accelerators: 16", "num_acelerators: 16", "chief.num_acelerators: unknown key; did you mean 'num_accel"),
        ("cpu: 24", "cpu: many", "chief.cpu: must be a valid integer, not 'many'"),
        ("cpu: 24", "cpu: 0", "chief.cpu: must be greater than or equal to 1, not 0"),
        ("  mem: 1.4Ti\n", "", "chief.mem: a value is required"),
        ("1.4Ti", "1.4Zi", "chief.mem: not an amount of memory: '1.4Zi'"),
        ("16", "0", "accelerator_type is set, but num_accelerators is 0"),
        ("replicas: 4", "replicas: 0", "dataset_worker.replicas"),
        ("chief:", "cheif:", "there is no chief; did you mean 'cheif'?"),
        ("  cpu: 24", "  cpu: 24\n  cpu: 25", "line 4: key 'cpu' is given twice, first on line 3"),
        ("chief:", "- chief:", "cannot be read"),
    ],
)
def test_faults_name_the_role_the_key_and_the_value(fault, old, new, said):
    assert said in fault(GOOD.replace(old, new))


@pytest.mark.parametrize("text", ["", "[]", "chief", "chief:"])
def test_what_is_no_mapping_of_machines(fault, text):
    assert "roles" in fault(text) or "chief" in fault(text)


def test_several_faults_come_together():
    with pytest.raises(MachinesError, match=r"(?s)chief\.cpu.*chief\.replicas"):
        parse_machines({"chief": {"mem": "1Gi", "cpu": -1, "replicas": 0}})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MachinesError, match=r"(?s)no such file.*nowhere\.yaml"):
        load_machines(tmp_path / "nowhere.yaml")


def test_the_twhin_project_declares_valid_machines():
    machines = load_machines(Path(tml.__file__).parent / "projects" / "twhin" / "machines.yaml")
    assert machines.chief.num_accelerators == 16
    assert machines["dataset_worker"].replicas == 4
