"""tml: graph embeddings (TwHIN) and light rankers on PyTorch and TorchRec."""

__version__ = "0.1.0"
