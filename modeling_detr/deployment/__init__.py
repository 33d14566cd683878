"""Trained models in the formats of other runtimes, proved equal to the model before they are handed over."""
