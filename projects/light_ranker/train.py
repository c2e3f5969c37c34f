"""Train a light ranker by the documented command, or by the original's options:

    python projects/light_ranker/train.py --train_data_path=/data/train --eval_data_path=/data/eval \
        --model_dir=runs/clicks --num_epochs=10 --learning_rate=0.001

The data is a prepared folder, a table or block files of DataRecords; see `argument_table.py` for all options. After
training, the metrics are printed as JSON and the model is exported for serving.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import record

from tml.common.errors import ConfigError
from tml.core.session import run_main
from tml.ml_logging import rank
from tml.projects.light_ranker.argument_params import params_of
from tml.projects.light_ranker.arguments import Arguments, parse_arguments
from tml.projects.light_ranker.trainer import DataRecordTrainer
from tml.projects.light_ranker.training_data import DataSource


def source_of(arguments: Arguments, split: str) -> DataSource | None:
    """The data of a split, `train` or `eval`; None without a path."""
    path = arguments.get(f"{split}_data_path")
    given = {
        "start": arguments.get(f"{split}.start_date"),
        "end": arguments.get(f"{split}.end_date"),
        "files_list": arguments.get(f"{split}.files_list"),
        "overwrite_files_list": arguments.get(f"{split}.overwrite_files_list"),
        "file_keep_rate": arguments.get(f"{split}.parts_downsampling_rate"),
    }
    told = {name: value for name, value in given.items() if value is not None}
    if path is None:
        if told:
            raise ConfigError(f"--{split}_data_path is missing", value=told, fix="say which data is meant")
        return None
    if told.get("overwrite_files_list") and "files_list" not in told:
        raise ConfigError(f"--{split}.overwrite_files_list has no list", fix=f"give --{split}.files_list")
    dates = {"date_format": arguments.get("datetime_format"), "hour_resolution": arguments.get("hour_resolution", 1)}
    return DataSource(path, **dates, **told)


def train(arguments: Arguments) -> int:
    """Train, evaluate and export; returns the process's exit code."""
    source, evaluation = source_of(arguments, "train"), source_of(arguments, "eval")
    if source is None:
        raise ConfigError("--train_data_path is missing", fix="give a prepared folder, a table or block files")
    model = DataRecordTrainer(params_of(arguments)).train(source, evaluation)
    # The process group is gone by now; the launcher's rank is not.
    if rank() == 0:
        folder = model.export_for_serving(arguments.get("export_dir"))
        shown = {name: value if math.isfinite(value) else None for name, value in sorted(model.metrics.items())}
        print(json.dumps({"metrics": shown, "export": str(folder)}))
    return 0


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the documented command."""
    words = sys.argv[1:] if argv is None else argv
    run_main(lambda: train(parse_arguments(words)))


if __name__ == "__main__":
    main()
