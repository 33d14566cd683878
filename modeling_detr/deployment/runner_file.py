"""The `detect.py` of an exported folder, which runs it without PyTorch and without this package."""

import importlib
import inspect

from modeling_detr.runtimes import detect


_IMPORT = "from modeling_detr.runtimes import open_model\n"


def runner_source(runtime: str) -> str:
    """The text of `detect.py`: `runtimes/detect.py` with the `open_model` of one runtime in place of its import.

    Args:
        runtime: A file in `runtimes/`, such as `onnx`.
    """
    opener = inspect.getsource(importlib.import_module(f"modeling_detr.runtimes.{runtime}").open_model)
    before, after = inspect.getsource(detect).split(_IMPORT)
    return f"{before}\n{opener}{after}"
