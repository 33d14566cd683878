"""Turn a checkpoint of one kind into a folder of another.

    detr convert facebook/detr-resnet-50 my_start          # any model that loads here, saved as one of ours
    detr convert runs/mine for_everybody --to transformers

With `--to transformers` the folder loads with `AutoModelForObjectDetection` and `pipeline("object-detection")` where
this package is not installed and no code of the Hub is trusted. Nothing is written before all is known to fit.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from modeling_detr.commands.detector import load_detector
from modeling_detr.conversion.transformers import save_for_transformers


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        "detr convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("source", help="a model's or a run's folder, or a name on the Hub; stock DETRs too")
    parser.add_argument("target", type=Path, help="the folder to write, which must not exist")
    parser.add_argument(
        "--to",
        choices=("ours", "transformers"),
        default="ours",
        help="what to write: a model of this package, or one of Transformers' own (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    target: Path = arguments.target
    if target.exists():
        raise FileExistsError(f"{target} exists; give a folder that does not, or remove it.")
    model, processor = load_detector(arguments.source)

    def write(folder: Path) -> None:
        if arguments.to == "transformers":
            save_for_transformers(model, processor, folder)
        else:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)

    write_whole(target, write)
    kind = "Transformers' own DETR" if arguments.to == "transformers" else "a model of this package"
    print(f"{target}: {type(model).__name__} of {len(model.config.id2label or {})} classes, as {kind}")
    return 0


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a hidden folder beside `target`, then gives it its name: a target that is there is whole."""
    temporary = target.with_name(f".{target.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
