"""Measurements that anyone can repeat: `detr benchmark`."""
