"""`tml convert`: edges with string or integer ids in, vocabularies and shuffled integer edges out (docs/data.md)."""
