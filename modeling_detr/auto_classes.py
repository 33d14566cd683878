"""Our classes among those that Transformers' Auto classes and pipelines build.

To register a class, it has to be imported, and so has its Auto class, which together takes longer than importing
PyTorch. Programs that import this package may need neither, so each class is registered when its Auto class has been
imported, before that import statement returns.
"""

import importlib.util
from collections.abc import Callable

from modeling_detr.import_hooks import ImportWatcher


def register_when_imported() -> None:
    """Registers our classes with each Auto class as soon as that is imported."""
    watcher = ImportWatcher({"transformers", "modeling_detr"})
    for module, register in REGISTRATIONS.items():
        watcher.call_after_import(module, register)
    watcher.call_after_import("transformers", _register_with_moved_auto_classes)


def _register_with_moved_auto_classes() -> None:
    """A release of Transformers that keeps its Auto classes elsewhere makes imports slower, but finds our classes."""
    for module, register in REGISTRATIONS.items():
        if not _exists(module):
            register()


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it was in
        return False


# exist_ok: Transformers has classes of the same names; the model_type "modeling_detr" distinguishes ours
def _register_config() -> None:
    from transformers import AutoConfig

    from modeling_detr.configuration_detr import DetrConfig

    AutoConfig.register(DetrConfig.model_type, DetrConfig, exist_ok=True)


def _register_models() -> None:
    from transformers import (
        AutoModel,
        AutoModelForImageSegmentation,
        AutoModelForInstanceSegmentation,
        AutoModelForObjectDetection,
        AutoModelForUniversalSegmentation,
    )

    from modeling_detr.configuration_detr import DetrConfig
    from modeling_detr.modeling_detr import DetrForObjectDetection, DetrModel
    from modeling_detr.segmentation_detr import DetrForSegmentation

    AutoModel.register(DetrConfig, DetrModel, exist_ok=True)
    AutoModelForObjectDetection.register(DetrConfig, DetrForObjectDetection, exist_ok=True)
    for auto in (AutoModelForUniversalSegmentation, AutoModelForImageSegmentation, AutoModelForInstanceSegmentation):
        auto.register(DetrConfig, DetrForSegmentation, exist_ok=True)


def _register_image_processor() -> None:
    from transformers import AutoImageProcessor

    from modeling_detr.configuration_detr import DetrConfig
    from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor

    AutoImageProcessor.register(DetrConfig, fast_image_processor_class=DetrTorchvisionImageProcessor, exist_ok=True)


# Where Transformers keeps an Auto class → what registers our classes with it
REGISTRATIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
}
