"""The side of Keras: runs in the environment that setup_keras.sh makes, without tml.

keras_worker.py JOB.json        train one epoch, predict the test rows; see peer_rows.py

The data pipeline only gathers the rows of a batch by shuffled places, in threads of its own, ahead of the training.
"""

import json
import os
import sys
from pathlib import Path

from peer_rows import Clock, Rows, leave, read_rows


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

    order = rows.order(seed)
    arrays = [tf.constant(values) for values in (rows.ids, rows.numbers, *rows.targets().values())]
    places, names = tf.constant(order), list(rows.targets())

    def gather(start):
        chosen = places[start : start + batch_size]
        ids, numbers, *targets = (tf.gather(values, chosen) for values in arrays)
        return {"ids": ids, "numbers": numbers}, dict(zip(names, targets, strict=True))

    starts = tf.data.Dataset.range(0, len(order), batch_size)
    return starts.map(gather, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def ticks(clock: Clock, batch_size: int, num_rows: int):
    """A callback that tells the clock of every call of the compiled step; the first one traces the graph."""
    import keras

    class Ticks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            clock.tick(min((batch + 1) * batch_size, num_rows))

    return Ticks()


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
    train, test = read_rows(job)
    model, clock = build_model(job, train.numbers.shape[1]), Clock()
    callbacks = [ticks(clock, job["batch_size"], len(train))]
    model.fit(batches(train, job["batch_size"], job["seed"]), epochs=1, verbose=0, callbacks=callbacks)
    logits = model.predict(batches(test, job["batch_size"], None), verbose=0)["click"][:, 0]
    leave(job, clock, logits, test)


if __name__ == "__main__":
    main()
