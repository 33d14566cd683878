"""Judging a detector: COCO average precision on any dataset, and the report of it."""
