"""The side of PyTorch-BigGraph (PBG): runs in the environment that setup_pbg.sh makes, without tml.

pbg_worker.py prepare GRAPH DATA        parquet edges -> PBG's HDF5 edges and entity counts
pbg_worker.py train JOB.json            train, then write the embeddings as .npy files and the timing as JSON
"""

import json
import logging
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np

_PROCESSED = re.compile(r"Processed (\d+) edges in ([\d.]+) s .* io: ([\d.]+) s")


def prepare(graph: Path, tables: dict[str, int], data: Path) -> None:
    """Convert a folder of `tml convert` once: `train/edges_0_0.h5` and an entity count per table."""
    import h5py

    if (data / "train").is_dir():
        return
    unfinished = data.with_name(data.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "train").mkdir(parents=True)
    with h5py.File(unfinished / "train" / "edges_0_0.h5", "w") as file:
        file.attrs["format_version"] = 1
        for name, values in read_edges(graph / "edges" / "train").items():
            file.create_dataset(name, data=values)
    for table, size in tables.items():
        (unfinished / f"entity_count_{table}_0.txt").write_text(f"{size}\n")
    shutil.rmtree(data, ignore_errors=True)
    unfinished.rename(data)


def read_edges(folder: Path) -> dict[str, np.ndarray]:
    """lhs, rel and rhs, int64 [E] each, of a folder's parquet files in order of name."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(file) for file in sorted(folder.glob("*.parquet"))]
    return {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in ("lhs", "rel", "rhs")}


class BucketTimes(logging.Handler):
    """Adds up what PBG logs of every bucket: edges, seconds of training and of reading."""

    def __init__(self) -> None:
        super().__init__()
        self.num_edges, self.seconds = 0, 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Take one log line."""
        found = _PROCESSED.search(record.getMessage())
        if found:
            self.num_edges += int(found[1])
            self.seconds += float(found[2]) + float(found[3])


def train(config: dict, out: Path) -> None:
    """PBG's own `train`, on a checkpoint folder that is emptied first."""
    import torchbiggraph.train as pbg
    from torchbiggraph.config import ConfigSchema
    from torchbiggraph.util import SubprocessInitializer, create_pool, setup_logging

    schema = ConfigSchema.from_dict(config)
    shutil.rmtree(schema.checkpoint_path, ignore_errors=True)
    setup_logging(schema.verbose)
    times = BucketTimes()
    logging.getLogger("torchbiggraph").addHandler(times)
    pbg.create_pool = lambda *args, **kwargs: started(create_pool(*args, **kwargs), schema.workers)
    init = SubprocessInitializer()
    init.register(setup_logging, schema.verbose)
    pbg.train(schema, subprocess_init=init)
    if not times.num_edges:
        raise SystemExit("PBG logged no 'Processed ... edges' line: the rate cannot be known")
    out.mkdir(parents=True, exist_ok=True)
    export(Path(schema.checkpoint_path), list(config["entities"]), len(config["relations"]), out)
    timing = {"num_edges": times.num_edges, "training_seconds": times.seconds}
    (out / "timing.json").write_text(json.dumps(timing))


def started(pool, num_workers: int):
    """The pool when all its workers are up and have imported PBG, which would otherwise count as training."""
    seen = set()
    while len(seen) < num_workers:
        seen.update(pool.map(_pid, range(4 * num_workers), chunksize=1))
    return pool


def _pid(_: int) -> int:
    import torchbiggraph.train  # noqa: F401

    time.sleep(0.05)
    return os.getpid()


def export(checkpoint: Path, tables: list[str], num_relations: int, out: Path) -> None:
    """The latest checkpoint as one `<table>.npy` [n, D] each, and `translations.npy` [R, D]."""
    import h5py

    version = (checkpoint / "checkpoint_version.txt").read_text().strip()
    for table in tables:
        with h5py.File(checkpoint / f"embeddings_{table}_0.v{version}.h5") as file:
            np.save(out / f"{table}.npy", file["embeddings"][...])
    with h5py.File(checkpoint / f"model.v{version}.h5") as file:
        names = [f"model/relations/{r}/operator/rhs/translation" for r in range(num_relations)]
        np.save(out / "translations.npy", np.stack([file[name][...] for name in names]))


def main() -> None:
    """The command line."""
    if sys.argv[1] == "prepare":
        graph, data = map(Path, sys.argv[2:4])
        prepare(graph, json.loads(sys.argv[4]), data)
    else:
        job = json.loads(Path(sys.argv[2]).read_text())
        train(job["config"], Path(job["out"]))


if __name__ == "__main__":
    main()
