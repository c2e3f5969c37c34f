"""How fast a machine is on paper: rates of its devices and links, by the name of an accelerator or as `machines.yaml`
says.

Bytes and operations a second, in one direction of a link. The presets are the makers' published peaks, dense (without
sparsity); docs/planning.md names the sources. A run reaches a share of them: the three efficiencies are assumptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from tml.machines.errors import MachinesError
from tml.machines.quantities import parse_bytes, parse_rate

if TYPE_CHECKING:
    from tml.machines.config import Machine

MatmulType = Literal["fp32", "tf32", "bf16"]

Bytes = Annotated[int, pydantic.BeforeValidator(parse_bytes)]
Rate = Annotated[int, pydantic.BeforeValidator(parse_rate)]
Share = Annotated[float, pydantic.Field(gt=0, le=1)]


class RatesConfig(pydantic.BaseModel):
    """The `rates` of a role in `machines.yaml`, where they differ from the preset's.

    Those of a device are of one accelerator, or of the whole machine where there is none.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    memory: Bytes | None = pydantic.Field(None, description="Memory of an accelerator, in bytes: 80G, 40Gi.")
    memory_bandwidth: Rate | None = pydantic.Field(None, description="Bytes/s of a device's memory: 3350G.")
    fp32_flops: Rate | None = pydantic.Field(None, description="FLOP/s of a device's float32 products: 67T.")
    tf32_flops: Rate | None = pydantic.Field(None, description="The same with enable_tensorfloat32.")
    bf16_flops: Rate | None = pydantic.Field(None, description="The same with enable_amp.")
    device_link: Rate | None = pydantic.Field(None, description="Bytes/s a device sends to others of its node.")
    network: Rate | None = pydantic.Field(None, description="Bytes/s a node sends to others: 400G is 8 x 400 Gb/s.")
    host_link: Rate | None = pydantic.Field(None, description="Bytes/s from a host to one device: 63G.")
    memory_efficiency: Share | None = pydantic.Field(None, description="Share of memory_bandwidth that is reached.")
    matmul_efficiency: Share | None = pydantic.Field(None, description="Share of the FLOP/s that is reached.")
    link_efficiency: Share | None = pydantic.Field(None, description="Share of the three links that is reached.")


@dataclass(frozen=True)
class DeviceRates:
    """Rates of one device (an accelerator, or a CPU rank's share of a machine); see `RatesConfig` for the fields.

    Attributes:
        network: of the whole node, which its devices share.
        row_seconds: a random row of a table costs this beside its bytes; nothing where so many are under way that it
            is hidden.
        score_seconds: loss and derivative of one score, where scores stay in a cache and are never written to memory.
        launch_seconds: an operation's way from Python to the device.
    """

    name: str
    memory: int
    memory_bandwidth: float
    fp32_flops: float
    tf32_flops: float
    bf16_flops: float
    device_link: float
    network: float
    host_link: float
    memory_efficiency: float = 0.8
    matmul_efficiency: float = 0.5
    link_efficiency: float = 0.8
    row_seconds: float = 0.0
    score_seconds: float = 0.0
    launch_seconds: float = 8e-6

    def flops(self, kind: MatmulType) -> float:
        """FLOP/s of products that a run reaches."""
        peak: float = getattr(self, f"{kind}_flops")
        return peak * self.matmul_efficiency

    @property
    def bytes_per_second(self) -> float:
        """Of the device's memory, as a run reaches it."""
        return self.memory_bandwidth * self.memory_efficiency


# The network is that of one accelerator's own adapter, as in the makers' eight-device machines.
PRESETS: Mapping[str, DeviceRates] = {
    "a100": DeviceRates("a100", 40 * 10**9, 1555e9, 19.5e12, 156e12, 312e12, 300e9, 25e9, 31.5e9),
    "a100-80gb": DeviceRates("a100-80gb", 80 * 10**9, 2039e9, 19.5e12, 156e12, 312e12, 300e9, 25e9, 31.5e9),
    "h100": DeviceRates("h100", 80 * 10**9, 3350e9, 67e12, 494e12, 989e12, 450e9, 50e9, 63e9),
    "h200": DeviceRates("h200", 141 * 10**9, 4800e9, 67e12, 494e12, 989e12, 450e9, 50e9, 63e9),
    "l4": DeviceRates("l4", 24 * 10**9, 300e9, 30.3e12, 60e12, 121e12, 31.5e9, 12.5e9, 31.5e9),
}

# One core of a server processor whose cores are all at work. CPU ranks talk over sockets, also within a machine.
CPU_CORE = DeviceRates(
    "cpu", 0, 4.8e9, 76.8e9, 153.6e9, 153.6e9, 2e9, 3.1e9, 4.8e9,
    row_seconds=30e-9, score_seconds=1.5e-9, launch_seconds=6e-6,
)  # fmt: skip


def device_rates(machine: Machine, num_devices: int) -> DeviceRates:
    """The rates of each of a machine's devices.

    Args:
        machine: what `machines.yaml` declares.
        num_devices: its accelerators, or the CPU ranks that share its cores and memory.

    Raises:
        MachinesError: the accelerator has no preset, and `rates` does not say everything.
    """
    given = {name: value for name, value in machine.rates or () if value is not None}
    if machine.num_accelerators == 0:
        return _cpu_rates(machine, num_devices, given)
    preset = PRESETS.get((machine.accelerator_type or "").lower())
    if preset is not None:
        return replace(preset, **{"network": preset.network * num_devices, **given})
    needed = [name for name in RatesConfig.model_fields if not name.endswith("_efficiency")]
    missing = [name for name in needed if name not in given]
    if missing:
        raise MachinesError(
            "the accelerator's rates are not known", where="chief.accelerator_type", value=machine.accelerator_type,
            limit=f"one of {', '.join(PRESETS)}",
            fix=f"name one of these, or say under chief.rates: {', '.join(missing)}",
        )  # fmt: skip
    return DeviceRates(name=machine.accelerator_type or "accelerator", **given)


def _cpu_rates(machine: Machine, num_devices: int, given: Mapping[str, Any]) -> DeviceRates:
    of_machine = {name: getattr(CPU_CORE, name) * machine.cpu for name in _CORES_ADD_UP}
    of_machine |= {name: value for name, value in given.items() if name in of_machine}
    cores = machine.cpu / num_devices
    return replace(
        CPU_CORE,
        **{name: value for name, value in given.items() if name not in of_machine and name != "memory"},
        **{name: value / num_devices for name, value in of_machine.items()},
        memory=machine.mem // num_devices,
        row_seconds=CPU_CORE.row_seconds / cores,
        score_seconds=CPU_CORE.score_seconds / cores,
    )


_CORES_ADD_UP = ("memory_bandwidth", "fp32_flops", "tf32_flops", "bf16_flops")
