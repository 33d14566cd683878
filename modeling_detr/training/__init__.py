"""Training: the recipe, the optimizer, the loop, training-only supervision, checkpoints, logs."""
