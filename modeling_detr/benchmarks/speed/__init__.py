"""`detr benchmark speed`: this package beside Transformers' own DETR and the original, on the same work."""
