"""What the light ranker learns: an MLP over embeddings and numbers, and the logistic lolly model."""
