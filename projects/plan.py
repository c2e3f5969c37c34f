"""`tml plan`: what a run would need of declared machines, and how fast it would be there, without any of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from tml.common.errors import ConfigError, DataError


@dataclass(frozen=True)
class _Project:
    """Where a project's config, workload and number of training examples are."""

    config: tuple[str, str]
    workload: str


_PROJECTS = {
    "twhin": _Project(("tml.projects.twhin.config", "TwhinConfig"), "tml.projects.twhin.workload"),
    "light_ranker": _Project(
        ("tml.projects.light_ranker.config", "LightRankerConfig"), "tml.projects.light_ranker.workload"
    ),
}


def plan_command(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="Config of a run, of either project.")],
    machines: Annotated[Path, typer.Option(help="machines.yaml; its chief trains.")],
    cpu_ranks: Annotated[int, typer.Option("--cpu_ranks", min=1, help="Ranks of a machine without accelerators.")] = 1,
    num_examples: Annotated[
        int | None,
        typer.Option("--num_examples", min=1, help="Examples of an epoch [the data's, if it is here]."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Probe this machine: its rates instead of those on paper (CPU ranks).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan a run on paper: memory, sharding, bytes, time. Overrides follow: train_data.global_batch_size=65536."""
    from tml.core.config import load_config, load_document
    from tml.core.planning.cluster import Cluster
    from tml.core.planning.plan import make_plan, require_fit
    from tml.core.planning.probe import measure as probe
    from tml.core.planning.report import plan_as_dict, plan_as_text
    from tml.core.session import hush_libraries
    from tml.machines import load_machines
    from tml.machines.launch import warn_of_small_machine

    hush_libraries()
    name = project_of(load_document(str(config), context.args).data, where=str(config))
    project = _PROJECTS[name]
    module, attribute = project.config
    loaded = load_config(getattr(import_module(module), attribute), str(config), context.args)
    workload = import_module(project.workload)
    chief = load_machines(machines).chief
    if measure:
        warn_of_small_machine(chief)
    plan = make_plan(
        partial(workload.build_workload, loaded),
        Cluster.of(chief, cpu_ranks),
        num_examples or _examples_here(workload.count_examples, loaded),
        probe if measure else None,
    )
    typer.echo(json.dumps(plan_as_dict(plan), indent=1) if as_json else plan_as_text(plan))
    require_fit(plan)


def project_of(document: Mapping[str, Any], where: str) -> str:
    """The project whose config has the sections of a file, as far as one can tell.

    Raises:
        ConfigError: no project's does.
    """
    faults = {}
    for name, project in _PROJECTS.items():
        fields = getattr(import_module(project.config[0]), project.config[1]).model_fields
        unknown = [key for key in document if key not in fields]
        missing = [key for key, field in fields.items() if field.is_required() and key not in document]
        faults[name] = len(unknown) + len(missing)
    found = min(faults, key=lambda name: faults[name])
    if faults[found] >= max(1, len(document)):
        raise ConfigError("this is no project's config", where=where, limit=f"a config of {' or '.join(_PROJECTS)}")
    return found


def _examples_here(count: Callable[[Any], int], config: Any) -> int | None:
    """The examples of an epoch, if the data is on this machine."""
    try:
        return count(config)
    except DataError:
        return None
