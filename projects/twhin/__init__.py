"""TwHIN: embeddings of users, tweets and other entities from typed edges (arXiv 2202.05387)."""
