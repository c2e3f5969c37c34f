"""The projects: each learns one thing and stands on `core`."""
