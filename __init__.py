"""tml: graph embeddings (TwHIN) and light rankers on PyTorch and TorchRec."""

import os

__version__ = "0.1.0"

# OpenMP reads this when torch is first imported. Its threads spin at every barrier by default: when another process, or
# our own reader thread, holds a core for a moment, a step takes several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
