"""The lolly text model: read, score, write."""
