"""DataRecords: the legacy format of training examples, its bytes, its requests and its files."""
