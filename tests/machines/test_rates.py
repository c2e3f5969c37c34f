from __future__ import annotations

import pytest

from tml.machines import Machine, MachinesError, parse_machines
from tml.machines.rates import CPU_CORE, PRESETS, device_rates


def _chief(**fields) -> Machine:
    return parse_machines({"chief": {"mem": "64Gi", "cpu": 16, **fields}}).chief


def test_a_named_accelerator_has_its_makers_rates():
    rates = device_rates(_chief(num_accelerators=8, accelerator_type="H100"), 8)
    assert rates.memory_bandwidth == 3350e9
    # Each device brings its own adapter.
    assert rates.network == 8 * PRESETS["h100"].network
    assert rates.flops("bf16") == 989e12 * rates.matmul_efficiency


def test_what_the_file_says_goes_before_the_preset():
    given = {"network": "12.5G", "memory": "80Gi", "fp32_flops": "20T", "memory_efficiency": 0.9}
    rates = device_rates(_chief(num_accelerators=16, accelerator_type="a100", rates=given), 16)
    assert (rates.network, rates.memory, rates.fp32_flops) == (12.5e9, 80 * 2**30, 20e12)
    assert rates.bytes_per_second == pytest.approx(0.9 * 1555e9)
    assert rates.device_link == PRESETS["a100"].device_link


def test_an_unknown_accelerator_needs_all_its_rates():
    with pytest.raises(MachinesError, match=r"(?s)b900.*a100.*memory_bandwidth"):
        device_rates(_chief(num_accelerators=1, accelerator_type="b900", rates={"memory": "1T"}), 1)
    given = dict.fromkeys(("memory_bandwidth", "device_link", "network", "host_link"), "1T")
    given |= dict.fromkeys(("memory", "fp32_flops", "tf32_flops", "bf16_flops"), "2T")
    rates = device_rates(_chief(num_accelerators=1, accelerator_type="b900", rates=given), 1)
    assert (rates.name, rates.memory, rates.network) == ("b900", 2e12, 1e12)


def test_ranks_share_the_cores_and_memory_of_a_machine():
    one, four = (device_rates(_chief(), ranks) for ranks in (1, 4))
    assert one.fp32_flops == 16 * CPU_CORE.fp32_flops == 4 * four.fp32_flops
    assert one.memory == 64 * 2**30 == 4 * four.memory
    assert four.row_seconds == pytest.approx(4 * one.row_seconds)
    given = device_rates(_chief(rates={"fp32_flops": "1T", "network": "3G"}), 4)
    assert (given.fp32_flops, given.network) == (0.25e12, 3e9)


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"netwrok": "1G"}, "chief.rates.netwrok: unknown key; did you mean 'network'?"),
        ({"network": "fast"}, "chief.rates.network: not a rate: 'fast'"),
        ({"memory_efficiency": 1.5}, "chief.rates.memory_efficiency: must be less than or equal to 1, not 1.5"),
        ({"memory_bandwidth": -1}, "chief.rates.memory_bandwidth"),
    ],
)
def test_faults_name_the_rate_and_the_value(rates, said):
    with pytest.raises(MachinesError) as caught:
        _chief(rates=rates)
    assert said in str(caught.value)
