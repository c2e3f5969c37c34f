"""What the export says of its self-check."""

import torch

from tml.common.modules.calibrators import Isotonic
from tml.projects.light_ranker.export.check import described

FOUND = {"num_rows": 4608.0, "probability": 4.2e-4, "beyond_calibration": 3e-7}


def test_the_sentence_says_what_the_limit_is_held_against():
    steps = Isotonic.from_dict({"x": [0.0, 0.5, 0.5, 1.0], "y": [0.0, 0.1, 0.9, 1.0]})
    assert steps(torch.tensor([0.25])).item() < 0.1
    said = described(FOUND, 1e-4, steps)
    assert said.startswith("probabilities within 4.2e-04 of the trainer's over 4,608 rows, where steps of the isotonic")
    assert said.endswith("3.0e-07 beyond that (limit 1e-04)")
    assert described(FOUND, 1e-3, None).endswith("over 4,608 rows (limit 1e-03)")
