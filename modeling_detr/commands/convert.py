"""Convert a checkpoint: the original's to ours, ours to the original's, ours to Transformers' own DETR.

    detr convert detr-r101-dc5-a2e86def.pth start                 # the original's file → a folder for from_pretrained
    detr convert detr-r50 start                                   # a released model by name, downloaded
    detr convert runs/mine mine.pth --to original                 # → what the original's load_state_dict takes
    detr convert runs/mine mine_stock --to transformers           # → what Transformers loads without this package

The network is read off the weights; what was assumed is printed. Nothing in a checkpoint is run. The target must not
be there, and is there only when it is whole.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from modeling_detr.atomic_output import new_folder
from modeling_detr.conversion import convert_original, export_original, save_for_transformers
from modeling_detr.conversion.checkpoint_files import is_released
from modeling_detr.conversion.sources import load_model


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        "detr convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "source", help="a .pth of the original, the name of a released one, a model's folder or Hub id"
    )
    parser.add_argument("target", type=Path, help="the folder, or with --to original the file, to write")
    parser.add_argument("--to", choices=("ours", "original", "transformers"), default="ours", help="default: ours")
    original = parser.add_argument_group("of a checkpoint of the original")
    original.add_argument("--labels", type=Path, metavar="FILE", help="names of the classes, one a line")
    original.add_argument("--num_labels", type=int, metavar="N", help="for a file whose class_embed was deleted")
    original.add_argument(
        "--dilation", type=_boolean, metavar="BOOL", help="dilation in the backbone's last stage, DC5"
    )
    original.add_argument("--encoder_attention_heads", type=int, metavar="N")
    original.add_argument("--decoder_attention_heads", type=int, metavar="N")
    arguments = parser.parse_args(argv)
    given = {
        key: getattr(arguments, key) for key in ("dilation", "encoder_attention_heads", "decoder_attention_heads")
    }
    is_original = Path(arguments.source).is_file() or is_released(arguments.source)
    unused = [key for key in ("labels", "num_labels", *given) if getattr(arguments, key) is not None]
    if unused and not is_original:
        raise ValueError(f"--{unused[0]} is for a checkpoint of the original; {arguments.source} is none.")

    if arguments.to == "ours" and is_original:
        said = convert_original(
            arguments.source,
            arguments.target,
            num_labels=arguments.num_labels,
            names=read_names(arguments.labels) if arguments.labels is not None else None,
            given=given,
        )
    elif is_original:
        raise ValueError(
            f"{arguments.source} is a checkpoint of the original; convert it to ours first (detr convert "
            f"{arguments.source} FOLDER), then FOLDER --to {arguments.to}."
        )
    else:
        model, processor = load_model(arguments.source)
        said = [f"read {type(model).__name__} of {model.config.num_labels} classes"]
        if arguments.to == "original":
            said += export_original(model, arguments.target)
        else:
            with new_folder(arguments.target) as folder:
                if arguments.to == "transformers":
                    save_for_transformers(model, processor, folder)
                else:  # of Transformers' own DETR, or of ours once more
                    model.save_pretrained(folder)
                    processor.save_pretrained(folder)
    kinds = {
        "ours": "a model of this package",
        "original": "a checkpoint of the original",
        "transformers": "a model of Transformers' own",
    }
    print("\n".join([*said, f"wrote {arguments.target}, {kinds[arguments.to]}"]))
    return 0


def read_names(path: Path) -> list[str]:
    """The names of classes in a text file, one a line.

    Raises:
        ValueError: A line is empty, or a name is there twice.
        OSError: The file cannot be read.
    """
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").strip().splitlines()]
    for number, name in enumerate(names, start=1):
        if not name:
            raise ValueError(f"{path}: line {number} is empty; wanted the name of one class a line.")
        if names.index(name) < number - 1 and name != "N/A":
            raise ValueError(f"{path}: line {number}: '{name}' is there twice; wanted the name of each class once.")
    return names


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"got '{text}'; wanted true or false")
    return text.lower() == "true"
