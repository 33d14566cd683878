"""Exported models: what `detr export` writes, and the checks that it has to pass.

`export_detector` is the whole story: `graph` traces the model, `targets` writes it as a file, `folder` adds what is
needed to run it, and `checks` compares it with the model before the folder appears.
"""

from modeling_detr.deployment.export import export_detector


__all__ = ["export_detector"]
