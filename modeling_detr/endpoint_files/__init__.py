"""Files with which the folder of a model serves as it is: on an Inference Endpoint, and as a Space.

`handler.py` and `app.py` are copied unchanged. They import nothing of this package; a model's own code comes with its
weights.
"""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from modeling_detr.atomic_output import replace_text


HANDLER, APP, REQUIREMENTS = "handler.py", "app.py", "requirements.txt"

OF_MODEL = ("torch>=2.10", "torchvision>=0.25", "transformers>=5.17,<6", "timm>=1.0.26", "scipy>=1.11", "pillow>=12.3")
"""What a saved model needs where it is served."""


def write_endpoint_files(folder: Path, requirements: Iterable[str]) -> None:
    """Writes `handler.py`, `app.py` and `requirements.txt` beside a model.

    Args:
        folder: The folder of the model.
        requirements: What has to be installed to run it.

    Raises:
        OutputError: A file cannot be written.
    """
    for name in (HANDLER, APP):
        replace_text(folder / name, files(__name__).joinpath(name).read_text(encoding="utf-8"))
    replace_text(folder / REQUIREMENTS, "".join(f"{requirement}\n" for requirement in requirements))
