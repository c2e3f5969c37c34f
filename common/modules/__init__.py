"""Modules that projects build their models from."""
