"""Training data of TwHIN: converting, vocabularies, edges, chunks with their negatives."""
