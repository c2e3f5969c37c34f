"""Scoring with an exported ranker: in Python, and over HTTP."""
