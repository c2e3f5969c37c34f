"""PyTorch-BigGraph's own importer of a table of edges; runs in the environment that setup_pbg.sh makes, without tml.

pbg_importer.py worker JOB.json
"""

import json
import shutil
import sys
import time
from pathlib import Path


def convert(job: dict) -> dict:
    """Import the edges, and count what came of them."""
    import h5py
    from torchbiggraph.config import EntitySchema, RelationSchema
    from torchbiggraph.converters.import_from_tsv import convert_input_data

    folder = Path(job["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    convert_input_data(
        {name: EntitySchema(num_partitions=1) for name in job["entities"]},
        [RelationSchema(name=name, lhs=lhs, rhs=rhs) for name, lhs, rhs in job["relations"]],
        str(folder),
        [str(folder / "train")],
        [Path(job["edges"])],
        lhs_col=0,
        rhs_col=2,
        rel_col=1,
    )
    seconds = time.perf_counter() - start
    with h5py.File(folder / "train" / "edges_0_0.h5") as file:
        num_edges = len(file["lhs"])
    counts = {name: int((folder / f"entity_count_{name}_0.txt").read_text()) for name in job["entities"]}
    return {"seconds": seconds, "num_edges": num_edges, "num_entities": counts}


def main() -> None:
    """The command line."""
    job = json.loads(Path(sys.argv[2]).read_text())
    Path(job["out"]).write_text(json.dumps(convert(job)))


if __name__ == "__main__":
    main()
