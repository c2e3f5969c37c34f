"""The schema of `machines.yaml`: what each role of a job needs.

chief:                      # trains; one rank per accelerator
  mem: 1.4Ti
  cpu: 24
  num_accelerators: 16
  accelerator_type: a100
  rates: {network: 12.5G}   # optional, for `tml plan`: what differs from the preset of a100
dataset_worker:             # any further role
  mem: 14Gi
  cpu: 2
  replicas: 4
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic
import yaml

from tml.machines.errors import MachinesError
from tml.machines.quantities import parse_bytes
from tml.machines.rates import RatesConfig

CHIEF = "chief"


class Machine(pydantic.BaseModel):
    """What one task of a role needs."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    mem: int = pydantic.Field(gt=0, description="Memory in bytes; written as 1.4Ti, 14Gi or 512M.")
    cpu: int = pydantic.Field(ge=1, description="CPU cores.")
    num_accelerators: int = pydantic.Field(0, ge=0, le=1024, description="Accelerators; 0 trains on CPU ranks.")
    accelerator_type: str | None = pydantic.Field(None, min_length=1, description="For example a100; for schedulers.")
    replicas: int = pydantic.Field(1, ge=1, description="Tasks of this role; for the chief: nodes.")
    rates: RatesConfig | None = pydantic.Field(
        None, description="For `tml plan`, where they differ from accelerator_type's preset."
    )

    @pydantic.field_validator("mem", mode="before")
    @classmethod
    def _parse_mem(cls, mem: Any) -> int:
        return parse_bytes(mem)

    @pydantic.model_validator(mode="after")
    def _check_accelerators(self) -> Machine:
        if self.accelerator_type is not None and self.num_accelerators == 0:
            raise ValueError("accelerator_type is set, but num_accelerators is 0")
        return self


class Machines(pydantic.RootModel[dict[str, Machine]]):
    """Role -> machine. Every job has a chief."""

    model_config = pydantic.ConfigDict(frozen=True)

    @property
    def chief(self) -> Machine:
        """The machine that trains."""
        return self.root[CHIEF]

    @property
    def roles(self) -> tuple[str, ...]:
        """All roles, in the file's order."""
        return tuple(self.root)

    def __getitem__(self, role: str) -> Machine:
        if role not in self.root:
            raise MachinesError("no such role", where="machines", value=role, limit=f"one of {', '.join(self.roles)}")
        return self.root[role]


def load_machines(path: str | os.PathLike[str]) -> Machines:
    """Read and check a `machines.yaml`.

    Raises:
        MachinesError: no such file, broken YAML, or values that are not as they must be; names every fault.
    """
    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.load(file, Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise MachinesError("no such file", where=path, fix="check --machines") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MachinesError(f"cannot be read: {error}", where=path) from None
    return parse_machines(data, source=str(path))


def parse_machines(data: Any, source: str = "machines") -> Machines:
    """Check values in memory; see `load_machines`."""
    if not isinstance(data, Mapping) or not data:
        raise MachinesError(
            "machines are a mapping of roles", where=source, value=data, limit="chief: {mem: ..., cpu: ...}"
        )
    if CHIEF not in data:
        raise MachinesError(
            f"there is no chief{_did_you_mean(CHIEF, data)}", where=source, limit="every job has the role 'chief'"
        )
    try:
        return Machines.model_validate(dict(data))
    except pydantic.ValidationError as error:
        faults = [_fault(line) for line in error.errors(include_url=False)]
        raise MachinesError("; ".join(faults), where=source, fix=f"fields: {', '.join(Machine.model_fields)}") from None


def _fault(line: Any) -> str:
    path = ".".join(str(part) for part in line["loc"])
    if line["type"] == "extra_forbidden":
        fields = RatesConfig.model_fields if "rates" in line["loc"][:-1] else Machine.model_fields
        return f"{path}: unknown key{_did_you_mean(str(line['loc'][-1]), fields)}"
    if line["type"] == "missing":
        return f"{path}: a value is required"
    message = str(line["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{path}: {message}, not {line['input']!r}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, [str(name) for name in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.value in seen:
                raise yaml.YAMLError(
                    f"line {line}: key {key_node.value!r} is given twice, first on line {seen[key_node.value]}"
                )
            seen[str(key_node.value)] = line
        return super().construct_mapping(node, deep)
