"""Check that the results of a run can be written, and take the place of no input, before anything is written."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from modeling_detr.errors_detr import OutputError
from modeling_detr.output_errors import check_folder
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.outputs import OUTPUTS
from modeling_detr.predicting.outputs.pictures import picture_name
from modeling_detr.predicting.video.run import video_names
from modeling_detr.predicting.video.writing import WRITTEN_SUFFIXES


def check_results(folder: Path, images: Sequence[InputImage], videos: Sequence[str], outputs: Sequence[str]) -> None:
    """Checks the files that a run will write.

    Args:
        folder: The folder of the results.
        images: The images to predict for.
        videos: The videos to predict for.
        outputs: The names of the outputs, of `OUTPUTS`.

    Raises:
        OutputError: A file cannot be written, or would overwrite an input, also by way of a link.
    """
    draws = "pictures" in outputs
    pictures = [str(picture_name(image.name)) for image in images] if draws else []
    drawn_videos = [f"{name}{suffix}" for name in video_names(videos) for suffix in WRITTEN_SUFFIXES] if draws else []
    lists = [file for name in outputs for file in OUTPUTS[name].create.files] if images else []
    check_folder(folder, files=[*pictures, *lists])
    sources = [image.source for image in images if not image.opener]
    _check_inputs_are_kept(folder, [*pictures, *drawn_videos], [*sources, *videos])


def _check_inputs_are_kept(folder: Path, written: Iterable[str], sources: Iterable[str]) -> None:
    places = {}
    for name in written:
        if (identity := _identity(folder / name)) is not None:
            places[identity] = folder / name
    if not places:  # as in a new folder
        return
    for source in sources:
        if (identity := _identity(source)) in places:
            raise OutputError(places[identity], f"would overwrite the input {source}", "choose another --output_dir")


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What tells a file from all others; None: there is no such file."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # a path may be too long, or a URL
        return None
    return status.st_dev, status.st_ino
