"""tml: graph embeddings (TwHIN) and light rankers on PyTorch and TorchRec."""

import os

__version__ = "0.1.0"

# OpenMP reads this when torch is first imported. By default its threads spin at a barrier for milliseconds: when
# another process, or our own reader thread, holds a core for a moment, a step takes several times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
