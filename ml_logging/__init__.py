"""Rank-aware logging and progress."""
