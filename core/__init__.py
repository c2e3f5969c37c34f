"""What every project shares: the training loop, configs, hooks, losses, metrics and optimizers."""
