"""Features: the config that names them, the vocabularies, and encoding a raw table into ids and numbers."""
