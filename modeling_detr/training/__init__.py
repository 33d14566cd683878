"""Training: recipe, setup, plan, run loop, optimizer steps, training aids, checkpoints, logs."""
