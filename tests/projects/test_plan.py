"""`tml plan` from the command line, for configs of both projects, and the probe behind `--measure`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tml
from tests.projects.light_ranker import tiny_run
from tests.projects.twhin import tiny
from tml.common.errors import ConfigError, LaunchError
from tml.core.planning import probe as probing
from tml.core.planning.cluster import Cluster
from tml.core.planning.plan import make_plan
from tml.machines import MachinesError, parse_machines
from tml.projects import cli
from tml.projects.plan import project_of
from tml.projects.twhin.workload import build_workload

ROOT = Path(tml.__file__).parent
MACHINES = """\
chief:
  mem: 2Ti
  cpu: 96
  num_accelerators: 8
  accelerator_type: h100
  replicas: 2
"""


@pytest.fixture
def machines(tmp_path) -> Path:
    path = tmp_path / "machines.yaml"
    path.write_text(MACHINES)
    return path


@pytest.fixture
def twhin(tmp_path) -> str:
    graph = tiny.write_graph(tmp_path / "graph")
    return _written(tmp_path / "twhin.yaml", tiny.tiny_settings(graph, tmp_path / "run"))


def _written(path: Path, settings: dict[str, Any]) -> str:
    path.write_text(json.dumps(settings))  # JSON is YAML
    return str(path)


def _plan(*arguments: object):
    return CliRunner().invoke(cli.app, ["plan", *map(str, arguments)])


def test_a_graphs_plan_in_words_and_numbers(twhin, machines):
    options = ("--config", twhin, "--machines", machines)
    text = _plan(*options)
    assert text.exit_code == 0, text.exception
    assert "twhin on 2 x 8 h100, fp32 products" in text.output
    assert "row_wise" in text.output
    numbers = json.loads(
        _plan(*options, "--json", "runtime.enable_amp=true", "train_data.global_batch_size=6400").output
    )
    assert (numbers["project"], numbers["global_batch"]) == ("twhin", 6400)
    assert numbers["num_examples"] > 1000
    given = json.loads(_plan(*options, "--json", "--num_examples", 10**9).output)
    assert given["epoch_seconds"] == pytest.approx(10**9 / given["examples_per_second"])


def test_a_rankers_plan(tmp_path, machines):
    data = tiny_run.write_data(tmp_path / "data")
    config = _written(tmp_path / "ranker.yaml", tiny_run.tiny_settings(data, tmp_path / "run"))
    numbers = json.loads(
        _plan("--config", config, "--machines", machines, "--json", "train_data.global_batch_size=1600").output
    )
    assert (numbers["project"], numbers["num_examples"]) == ("light_ranker", 4000)
    assert numbers["sharding"]["trained"][0]["sharding_type"] == "row_wise"


def test_without_data_an_epoch_has_no_length(twhin, machines):
    result = _plan("--config", twhin, "--machines", machines, "--json", "train_data.data_root=/no/such/folder")
    assert json.loads(result.output)["epoch_seconds"] is None


def test_processors_are_planned_for_as_ranks(twhin, tmp_path):
    path = tmp_path / "cpu.yaml"
    path.write_text("chief: {mem: 64Gi, cpu: 16, replicas: 2}")
    numbers = json.loads(_plan("--config", twhin, "--machines", path, "--cpu_ranks", 2, "--json").output)
    assert numbers["cluster"]["num_ranks"] == 4
    assert numbers["memory"]["host"] is None


def test_what_does_not_fit_is_shown_and_then_refused(twhin, machines):
    rows = "model.embeddings.tables.0.num_embeddings=100000000000"
    result = _plan("--config", twhin, "--machines", machines, rows, "--json")
    assert isinstance(result.exception, LaunchError)
    assert "too much" in str(result.exception)
    assert json.loads(result.output)["fits"] is False


def test_faults_of_the_files_are_the_users(twhin, machines, tmp_path):
    machines.write_text(MACHINES.replace("h100", "b900"))
    assert isinstance(_plan("--config", twhin, "--machines", machines).exception, MachinesError)
    machines.write_text(MACHINES)
    uneven = _plan("--config", twhin, "--machines", machines, "train_data.global_batch_size=401")
    assert isinstance(uneven.exception, ConfigError)
    other = tmp_path / "other.yaml"
    other.write_text("name: something else")
    with pytest.raises(ConfigError, match="no project's config"):
        project_of({"name": "something else"}, where=str(other))


@pytest.mark.parametrize("project", ["twhin", "light_ranker"])
def test_the_sections_of_a_config_tell_its_project(project):
    from tml.core.config import load_document

    for path in sorted((ROOT / "projects" / project / "configs").glob("*.yaml")):
        assert project_of(load_document(str(path)).data, where=str(path)) == project


def test_a_measured_plan_is_made_of_what_was_measured(twhin, monkeypatch):
    for name, value in {"_COPY_BYTES": 1 << 20, "_PRODUCT_SIZE": 64, "_SECONDS": 0.0, "_TABLE_REPEATS": 2}.items():
        monkeypatch.setattr(probing, name, value)
    from tml.core.config import load_config
    from tml.projects.twhin.config import TwhinConfig

    config = load_config(TwhinConfig, twhin)
    cluster = Cluster.of(parse_machines({"chief": {"mem": "8Gi", "cpu": 1}}).chief)
    plan = make_plan(lambda *arguments: build_workload(config, *arguments), cluster, measure=probing.measure)
    assert plan.probe is not None
    costs = plan.probe.costs
    assert costs is not None
    assert costs.head is not None
    seconds = {phase.name: phase.seconds for phase in plan.time.phases}
    assert seconds["look up rows"] == pytest.approx(plan.work.num_ids * costs.look_up)
    assert seconds["update rows"] == pytest.approx(plan.work.num_ids * costs.update)
    assert seconds["make batch"] == plan.probe.host.make_seconds > 0
    of_head = [seconds.get(name, 0.0) for name in ("matrix products", "scores, loss, elementwise")]
    assert sum(of_head) == pytest.approx(costs.head)
    assert of_head[0] == pytest.approx(min(costs.head, plan.work.head.flops / plan.probe.rates.fp32_flops))
    assert plan.cluster.rates.name == "this machine"


def test_of_an_accelerators_plan_only_the_host_is_measured(twhin, monkeypatch):
    from tml.core.config import load_config
    from tml.projects.twhin.config import TwhinConfig

    monkeypatch.setattr(probing, "_SECONDS", 0.0)
    config = load_config(TwhinConfig, twhin)
    cluster = Cluster.of(parse_machines({"chief": {"mem": "64Gi", "cpu": 8, "num_accelerators": 1,
                                                   "accelerator_type": "l4"}}).chief)  # fmt: skip
    work = build_workload(config, cluster)
    found = probing.measure(work, cluster)
    assert found.rates == cluster.rates
    assert found.costs is None
    assert found.host == replace(work.host, make_seconds=found.host.make_seconds)
    assert found.host.make_seconds != work.host.make_seconds
