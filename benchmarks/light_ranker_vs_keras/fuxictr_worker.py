"""The side of FuxiCTR: runs in the environment that setup_fuxictr.sh makes, without tml.

fuxictr_worker.py JOB.json      train one epoch, predict the test rows; see peer_rows.py

Embeddings, hidden layers, loss, optimizer, clipping of gradients and the training loop (`fit`) are FuxiCTR's. Batches
are gathered from memory by shuffled places.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from peer_rows import Clock, Rows, leave, read_rows


def feature_map(job: dict, num_numbers: int) -> FeatureMap:
    """One id feature for each column, and the numbers as one dense vector that enters the layers as it is."""
    found = FeatureMap("clicks", job["out"])
    found.default_emb_dim = job["dim"]
    for name, rows in zip(job["id_columns"], job["table_rows"], strict=True):
        found.features[_plain(name)] = {"source": "", "type": "categorical", "vocab_size": rows}
    found.features["numbers"] = {
        "source": "",
        "type": "embedding",
        "pretrain_dim": num_numbers,
        "embedding_dim": num_numbers,
        "feature_encoder": "nn.Identity()",
    }
    found.labels = ["click"]
    found.num_fields = found.get_num_fields()
    return found


class Dnn(BaseModel):
    """The DNN of FuxiCTR's model zoo, which the package on PyPI leaves out, from the same parts."""

    def __init__(self, features: FeatureMap, job: dict, clock: Clock) -> None:
        super().__init__(features, model_id="DNN", verbose=0, model_root=job["out"], metrics=["AUC"])
        initial = partial(torch.nn.init.normal_, std=job["init_scale"])
        self.embedding_layer = FeatureEmbedding(features, job["dim"], embedding_initializer=initial)
        self.mlp = MLP_Block(
            input_dim=features.sum_emb_out_dim(),
            hidden_units=job["hidden_sizes"],
            output_dim=1,
            output_activation=self.output_activation,
        )
        self.clock, self._num_trained = clock, 0
        self.compile("adam", "binary_crossentropy", job["learning_rate"])
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict) -> dict:
        """Probabilities of a click: {"y_pred": [B, 1]}."""
        return {"y_pred": self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))}

    def train_step(self, batch_data: dict) -> torch.Tensor:
        """FuxiCTR's step; the clock is told of it."""
        loss = super().train_step(batch_data)
        self._num_trained += len(batch_data["click"])
        self.clock.tick(self._num_trained)
        return loss

    def eval_step(self) -> None:
        """At the end of the epoch: keep the weights, which `fit` loads again; there are no validation rows."""
        Path(self.model_dir).mkdir(parents=True, exist_ok=True)
        self.save_weights(self.checkpoint)


class Batches:
    """Batches of rows by name, by a shuffled order if there is a seed."""

    def __init__(self, rows: Rows, job: dict, seed: int | None) -> None:
        self._columns, self._size = [_plain(name) for name in job["id_columns"]], job["batch_size"]
        self._ids, self._numbers, self._click = map(torch.from_numpy, (rows.ids, rows.numbers, rows.click))
        self._order = torch.from_numpy(rows.order(seed))

    def __len__(self) -> int:
        return -(-len(self._order) // self._size)

    def __iter__(self):
        for chosen in self._order.split(self._size):
            ids = dict(zip(self._columns, self._ids[chosen].unbind(1), strict=True))
            yield ids | {"numbers": self._numbers[chosen], "click": self._click[chosen]}


def _plain(name: str) -> str:
    # Modules of torch have no dots in their names.
    return name.replace(".", "_")


def main() -> None:
    """The command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["workers"])
    seed_everything(job["seed"])
    train, test = read_rows(job)
    clock = Clock()
    model = Dnn(feature_map(job, train.numbers.shape[1]), job, clock)
    model.fit(Batches(train, job, job["seed"]), epochs=1)
    leave(job, clock, model.predict(Batches(test, job, None)), test)


if __name__ == "__main__":
    main()
