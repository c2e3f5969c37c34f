"""Optimizer configs, learning-rate schedules, and the optimizers of a run, dense and fused."""
