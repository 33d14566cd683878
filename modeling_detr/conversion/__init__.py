"""Model conversion: find and load models of any kind (`SOURCES`), and write them in other formats (`TARGETS`)."""

from .original import convert_original, converted_copy, export_original
from .original_names import original_to_ours, ours_to_original
from .sources import SOURCES, find_model, load_detector, load_model
from .targets import TARGETS
from .transformers import save_for_transformers


__all__ = [
    "SOURCES",
    "TARGETS",
    "convert_original",
    "converted_copy",
    "export_original",
    "find_model",
    "load_detector",
    "load_model",
    "original_to_ours",
    "ours_to_original",
    "save_for_transformers",
]
