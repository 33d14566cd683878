"""Checkpoints of others: what their parameters are called here."""

from .original import original_to_ours


__all__ = ["original_to_ours"]
