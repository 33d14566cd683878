"""Find and load a dataset of `datasets`: a Hub id, a `save_to_disk` folder, or parquet files."""

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_detr.data.findings import Findings
from modeling_detr.data.formats.image_metadata import metadata_files
from modeling_detr.data.image_paths import is_split_name, refuse_outside
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError, DatasetReadError, DetrError
from modeling_detr.hub_connection import offline_if_unreachable
from modeling_detr.input_files import MAX_TEXT_BYTES, read_json, require_file
from modeling_detr.structures_detr import UNSPLIT


LOOKED_FOR = "a folder written by save_to_disk, .parquet files, images with metadata.jsonl, or a Hub id (owner/name)"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WHOLE = "whole"  # split of files without a split in their path; `datasets` reserves 'all'


def is_hub_id(path: str | Path) -> bool:
    """Whether `path` may be the id of a dataset on the Hub, owner/name."""
    return _HUB_ID.fullmatch(str(path)) is not None and not Path(path).exists()


def find_hf_files(path: Path) -> list[Path]:
    """Find the files that identify `path` as a dataset of `datasets`; empty if it is not."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    return _saved_files(path) or metadata_files(path) or parquet_files(path)


def find_tables(path: str | Path) -> list[Path]:
    """Find the tables of a folder of images; empty if `path` is a dataset of another kind."""
    place = Path(path)
    return metadata_files(place) if place.is_dir() and not _saved_files(place) else []


def _saved_files(path: Path) -> list[Path]:
    return [file for name in ("dataset_dict.json", "state.json") if (file := path / name).is_file()]


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files in a folder and in the folders of it, in the order of their paths."""
    return sorted({*path.glob("*.parquet"), *path.glob("*/*.parquet"), *path.glob("*/*/*.parquet")})


@contextlib.contextmanager
def explain_errors(path: str | Path) -> Iterator[None]:
    """Raise a DatasetReadError for whatever `datasets` and pyarrow raise in the block: for damaged files, anything."""
    try:
        yield
    except DetrError:
        raise
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300].rstrip(".") or type(error).__name__
        remedy = "rename its folder" if isinstance(error, UnicodeEncodeError) else "write it again"
        raise DatasetReadError(path, f"cannot be loaded by `datasets` ({reason})", remedy) from error


def load_splits(path: str | Path) -> dict[str, Any]:
    """Load the memory-mapped `datasets.Dataset` of each split.

    Args:
        path: See `hf.read_hf_dataset`.

    Raises:
        DatasetError: Something in it is invalid.
        OSError: It cannot be loaded.
    """
    import datasets

    place = Path(path)
    with _quiet(datasets):
        if is_hub_id(path) or not place.exists():
            loaded = _from_hub(datasets, str(path))
        elif place.is_dir() and any(file.suffix == ".json" for file in find_hf_files(place)):
            _check_saved(place)
            loaded = datasets.load_from_disk(str(place), keep_in_memory=False)
        else:
            loaded = _from_parquet(datasets, place)
    if isinstance(loaded, datasets.DatasetDict):
        return {UNSPLIT if name == _WHOLE else name: rows for name, rows in loaded.items()}
    return {UNSPLIT: loaded}


def load_parquet(files: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Load the memory-mapped `datasets.Dataset` of each split from its Parquet files; see `load_splits`."""
    import datasets

    # keys of our own: `datasets` allows few characters in the name of a split
    named = {f"split{number}": [str(file) for file in files[name]] for number, name in enumerate(files)}
    for paths in files.values():
        for file in paths:
            require_file(file)
    with _quiet(datasets):
        loaded = datasets.load_dataset("parquet", data_files=named, keep_in_memory=False)
    return dict(zip(files, (loaded[key] for key in named), strict=True))


def _from_parquet(datasets: Any, place: Path) -> Any:
    files: dict[str, list[str]] = {}
    for file in find_hf_files(place):
        files.setdefault(_split_of(file, place), []).append(str(file))
        require_file(file)
    if not files:
        raise DatasetNotFoundError(place, "no dataset of `datasets`", f"expected {LOOKED_FOR}")
    return datasets.load_dataset("parquet", data_files=files, keep_in_memory=False)


def _check_saved(folder: Path) -> None:
    """Check the files that `load_from_disk` will open, which JSON files name.

    Raises:
        FileReadError: One of them is not a regular file.
        DatasetError: A JSON file is invalid, or a file is outside the dataset's folder.
        DatasetReadError: An Arrow file is invalid; pyarrow would read past its end.
    """
    from modeling_detr.data.formats.arrow_rows import read_table

    folders = [folder]
    if (folder / "dataset_dict.json").is_file():
        content = read_json(folder / "dataset_dict.json", MAX_TEXT_BYTES)
        names = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(folder / "dataset_dict.json", "expected a list of names 'splits'", "save it again")
        folders = [folder / name for name in names]
    for split in folders:
        for name in ("state.json", "dataset_info.json"):
            refuse_outside([str(split / name)], [folder], Findings())
            require_file(split / name)
        files = _named_files(split / "state.json")
        refuse_outside(map(str, files), [folder], Findings())
        for file in files:
            read_table(str(file.resolve()))


def _named_files(state: Path) -> list[Path]:
    content = read_json(state, MAX_TEXT_BYTES)
    files = []
    for key in ("_data_files", "_indices_data_files"):
        entries = content.get(key) if isinstance(content, dict) else None
        for entry in entries or []:
            if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
                raise DatasetError(state, f"'{key}' is {entries!r}, expected a list of file names", "save it again")
            files.append(state.parent / entry["filename"])
    return files


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bar()


def _from_hub(datasets: Any, name: str) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    if name.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{name}"):
        # it would read the files of the working directory; "pandas" unpickles them in versions before 5.2
        raise DatasetNotFoundError(name, "a builder of `datasets`, not a dataset", f"expected {LOOKED_FOR}")
    try:
        with offline_if_unreachable():
            return datasets.load_dataset(name, keep_in_memory=False)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        problem = f"no such file or folder, and it could not be loaded from the Hub ({reason})"
        raise DatasetReadError(name, problem) from error


def _split_of(file: Path, root: Path) -> str:
    """Return `train` for train-00000-of-00002.parquet and train/0000.parquet, `whole` for paths without a split."""
    inner = file.relative_to(root).parts[:-1] if root.is_dir() else ()
    for word in (re.split(r"[-_.]", file.stem)[0], *inner):
        if is_split_name(word):
            return word.replace("-", "_")
    return _WHOLE
