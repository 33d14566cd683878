"""Checkpoints of others: the original's to ours and back, and ours to Transformers' own DETR."""

from .original import convert_original, converted_copy, export_original, original_to_ours, ours_to_original
from .transformers import save_for_transformers


__all__ = [
    "convert_original",
    "converted_copy",
    "export_original",
    "original_to_ours",
    "ours_to_original",
    "save_for_transformers",
]
