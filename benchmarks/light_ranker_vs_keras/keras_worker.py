"""The side of Keras: runs in the environment that setup_keras.sh makes, without tml.

keras_worker.py JOB.json        train one epoch, predict the test rows; writes predictions.npz and timing.json

The job says what to read and what to build, see settings.py. The rows are decoded and scaled once, to arrays in memory,
before the clock starts; so is everything that can be done before the first step. The data pipeline then only gathers
the rows of a batch by shuffled places, in threads of its own, ahead of the training.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

MAX_DEVIATION = 10.0


class Rows:
    """Encoded rows in memory: ids int32 [B, F], numbers float32 [B, 2 J], click and log watch time float32 [B]."""

    def __init__(self, folder: Path, job: dict, limit: int | None = None) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(folder, columns=[*job["id_columns"], *job["number_columns"], *job["label_columns"]])
        columns = {name: table[name].to_numpy()[:limit] for name in table.column_names}
        self.ids = np.stack([columns[name] for name in job["id_columns"]], axis=1).astype(np.int32)
        self.numbers = np.stack([columns[name] for name in job["number_columns"]], axis=1).astype(np.float32)
        labels = [columns[name].astype(np.float32) for name in job["label_columns"]]
        self.click = labels[0]
        self.log_watch_time = np.log1p(labels[1]) if len(labels) > 1 else None

    def targets(self) -> dict:
        """What each output learns."""
        watch = {} if self.log_watch_time is None else {"watch_time": self.log_watch_time}
        return {"click": self.click} | watch


def scale(train: np.ndarray, others: list[np.ndarray]) -> list[np.ndarray]:
    """Logarithms with the training rows' mean 0 and deviation 1, then a mark of each missing value, which is 0."""
    logs = np.log1p(train)
    mean, deviation = np.nanmean(logs, axis=0, dtype=np.float64), np.nanstd(logs, axis=0, dtype=np.float64)
    scaled = []
    for values in (train, *others):
        numbers = np.clip((np.log1p(values) - mean) / deviation, -MAX_DEVIATION, MAX_DEVIATION)
        missing = np.isnan(numbers)
        scaled.append(np.concatenate([np.where(missing, 0, numbers), missing], axis=1).astype(np.float32))
    return scaled


def build_model(job: dict, num_numbers: int):
    """An embedding of each id column, joined with the numbers; hidden layers with ReLU; a logit and a watch time."""
    import keras

    ids = keras.Input((len(job["table_rows"]),), dtype="int32", name="ids")
    numbers = keras.Input((num_numbers,), name="numbers")
    initial = keras.initializers.RandomNormal(stddev=job["init_scale"])
    embeddings = [
        keras.layers.Embedding(rows, job["dim"], embeddings_initializer=initial)(ids[:, column])
        for column, rows in enumerate(job["table_rows"])
    ]
    x = keras.layers.Concatenate()([*embeddings, numbers])
    for size in job["hidden_sizes"]:
        x = keras.layers.Dense(size, activation="relu")(x)
    heads = {"click": keras.losses.BinaryCrossentropy(from_logits=True), "watch_time": keras.losses.MeanSquaredError()}
    names = ["click", "watch_time"] if job["beta"] else ["click"]
    outputs = {name: keras.layers.Dense(1, name=name, dtype="float32")(x) for name in names}
    model = keras.Model({"ids": ids, "numbers": numbers}, outputs)
    model.compile(
        optimizer=keras.optimizers.Adam(job["learning_rate"]),
        loss={name: heads[name] for name in names},
        loss_weights={"click": 1.0, "watch_time": job["beta"]} if job["beta"] else {"click": 1.0},
        steps_per_execution=job["steps_per_execution"],
        jit_compile=False,  # XLA took longer in the one trial made, on a busy machine
    )
    return model


def batches(rows: Rows, batch_size: int, seed: int | None):
    """A tf.data pipeline of the rows: by a shuffled order if there is a seed."""
    import tensorflow as tf

    order = np.arange(len(rows.ids))
    if seed is not None:
        np.random.default_rng(seed).shuffle(order)
    arrays = [tf.constant(values) for values in (rows.ids, rows.numbers, *rows.targets().values())]
    places, names = tf.constant(order), list(rows.targets())

    def gather(start):
        chosen = places[start : start + batch_size]
        ids, numbers, *targets = (tf.gather(values, chosen) for values in arrays)
        return {"ids": ids, "numbers": numbers}, dict(zip(names, targets, strict=True))

    starts = tf.data.Dataset.range(0, len(order), batch_size)
    return starts.map(gather, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def clock(batch_size: int):
    """A callback that notes the rows and seconds after the first call of the compiled step, which traces the graph."""
    import keras

    class Clock(keras.callbacks.Callback):
        start = end = None
        first_step = last_step = -1

        def on_train_batch_end(self, batch, logs=None):
            self.end, self.last_step = time.perf_counter(), batch
            if self.start is None:
                self.start, self.first_step = self.end, batch

        def timing(self, num_rows: int) -> dict:
            counted = num_rows - (self.first_step + 1) * batch_size
            if counted <= 0:
                raise SystemExit(f"{num_rows} rows are trained in one call: give Keras more rows")
            return {"num_examples": counted, "training_seconds": self.end - self.start}

    return Clock()


def main() -> None:
    """The command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(job["workers"])
    tf.config.threading.set_inter_op_parallelism_threads(job["workers"])
    keras.utils.set_random_seed(job["seed"])
    keras.mixed_precision.set_global_policy(job["precision"])
    data = Path(job["data"])
    train, test = Rows(data / "train", job, job["max_examples"]), Rows(data / "test", job)
    train.numbers, test.numbers = scale(train.numbers, [test.numbers])
    model = build_model(job, train.numbers.shape[1])
    timer = clock(job["batch_size"])
    model.fit(batches(train, job["batch_size"], job["seed"]), epochs=1, verbose=0, callbacks=[timer])
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    timing = timer.timing(len(train.click)) | {"trained_examples": len(train.click)}
    (out / "timing.json").write_text(json.dumps(timing))
    logits = model.predict(batches(test, job["batch_size"], None), verbose=0)["click"][:, 0]
    np.savez(out / "predictions.npz", scores=logits.astype(np.float64), labels=test.click)


if __name__ == "__main__":
    main()
