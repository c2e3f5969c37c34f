"""Training data of the light ranker: batches, the dataset over encoded rows, lists of files, made-up clicks."""
