"""The translation model: operators, comparators, scores, negatives, losses."""
