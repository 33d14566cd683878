"""`detr tune`: a search for better values of a recipe's keys."""
