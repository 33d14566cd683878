"""What a model gets wrong, and what that costs."""

from modeling_detr.analysis.duplicates import DuplicateCost, duplicate_cost


__all__ = ["DuplicateCost", "duplicate_cost"]
