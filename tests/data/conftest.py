import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference_cases import REAL_DATA


# One small dataset, written in every format: file name, (height, width), objects (class name, corners in pixels).
IMAGES = {
    "train": [
        ("a.jpg", (60, 80), [("cat", (10, 20, 40, 50)), ("dog", (0, 0, 80, 60))]),
        ("b.png", (50, 40), [("dog", (5.5, 6.25, 20, 30))]),
    ],
    "val": [("c.jpg", (40, 40), []), ("d.jpg", (64, 48), [("cat", (1, 2, 3, 4))])],
}
NAMES = ["cat", "dog"]


@pytest.fixture
def real_data() -> Path:
    """The folder of real datasets, which are not part of the repository; without it, the test is skipped."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the real images in ../shared/data")
    return REAL_DATA


def write_image(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def coco_content(images: list, names: list[str] = NAMES, first_id: int = 1) -> dict:
    content: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(names)],
    }
    for number, (name, (height, width), objects) in enumerate(images, start=first_id):
        content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for kind, (x0, y0, x1, y1) in objects:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": number,
                    "category_id": names.index(kind) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                }
            )
    return content


def voc_content(name: str, size: tuple[int, int], objects: list) -> str:
    boxes = "".join(
        f"<object><name>{kind}</name><difficult>1</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for kind, (x0, y0, x1, y1) in objects
    )
    return (
        f"<annotation><filename>{name}</filename><size><width>{size[1]}</width><height>{size[0]}</height></size>"
        f"{boxes}</annotation>"
    )


def yolo_content(size: tuple[int, int], objects: list) -> str:
    height, width = size
    return "".join(
        f"{NAMES.index(kind)} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} {(x1 - x0) / width} "
        f"{(y1 - y0) / height}\n"
        for kind, (x0, y0, x1, y1) in objects
    )


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split, images in IMAGES.items():
        for name, size, _ in images:
            write_image(root / split / name, *size)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco_content(images)))
    return root


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, images in IMAGES.items():
        stems = [Path(name).stem for name, _, _ in images]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
        (root / "ImageSets" / "Main" / f"cat_{split}.txt").write_text("".join(f"{stem}  1\n" for stem in stems))
        for name, size, objects in images:
            write_image(root / "JPEGImages" / name, *size)
            (root / "Annotations" / f"{Path(name).stem}.xml").write_text(voc_content(name, size, objects))
    return root


@pytest.fixture
def yolo_folder(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    for split, images in IMAGES.items():
        (root / "labels" / split).mkdir(parents=True)
        for name, size, objects in images:
            write_image(root / "images" / split / name, *size)
            if objects:
                (root / "labels" / split / f"{Path(name).stem}.txt").write_text(yolo_content(size, objects))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 2\nnames: {0: cat, 1: dog}\n")
    return root


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """Rows with text as image ids, in two splits."""
    datasets = pytest.importorskip("datasets")
    for split, images in IMAGES.items():
        rows: dict[str, list] = {"image": [], "image_id": [], "objects": []}
        for name, size, objects in images:
            write_image(tmp_path / "hf" / "files" / name, *size)
            rows["image"].append(str(tmp_path / "hf" / "files" / name))
            rows["image_id"].append(name)
            boxes = [[x0, y0, x1 - x0, y1 - y0] for _, (x0, y0, x1, y1) in objects]
            rows["objects"].append({"bbox": boxes, "category": [NAMES.index(kind) for kind, _ in objects]})
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        table.to_parquet(str(tmp_path / "hf" / "data" / f"{split}-00000-of-00001.parquet"))
    return tmp_path / "hf"


@pytest.fixture
def edit() -> Callable[[Path, str, str], None]:
    """Returns a function that replaces text in a file, and fails if the file does not contain it."""

    def replace(path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return replace
