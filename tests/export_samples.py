"""Small exports of annotation tools, in the forms that the tools write; boxes are filled with their class's colour."""

import csv
import io
import json
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image


COLOURS = {"cat": (250, 10, 10), "dog": (10, 250, 10), "red car": (10, 10, 250), "red_car": (10, 10, 250)}
SCENES = {  # two images with the same name, and one without objects; (class, corners)
    "cam1/0000.png": ((60, 80), [("cat", (10, 20, 40, 50)), ("dog", (50, 2, 76, 30))]),
    "cam2/0000.png": ((50, 40), [("red car", (4, 6, 20, 30))]),
    "cam2/empty.png": ((30, 30), []),
}


def paint(path: Path, size: tuple[int, int], objects: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), 128, np.uint8)
    for name, (x0, y0, x1, y1) in objects:
        pixels[y0:y1, x0:x1] = COLOURS[name]
    Image.fromarray(pixels).save(path)


def paint_all(folder: Path) -> None:
    for name, (size, objects) in SCENES.items():
        paint(folder / name, size, objects)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")


# Samples of each format


def labelme(root: Path) -> None:
    paint_all(root)
    for name, ((height, width), objects) in SCENES.items():
        shapes = [
            {"label": kind, "points": [[x1, y0], [x0, y1]], "group_id": None, "shape_type": "rectangle", "flags": {}}
            for kind, (x0, y0, x1, y1) in objects
        ]
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": Path(name).name, "imageData": None}
        write((root / name).with_suffix(".json"), {**content, "imageHeight": height, "imageWidth": width})


def cvat(root: Path) -> None:
    paint_all(root / "images")
    images = ""
    for number, (name, ((height, width), objects)) in enumerate(SCENES.items()):
        images += f'<image id="{number}" name={quoteattr(name)} width="{width}" height="{height}">'
        for kind, (x0, y0, x1, y1) in objects:
            images += (
                f'<box label="{kind}" source="manual" occluded="0" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}" '
                f'z_order="0"><attribute name="colour">x</attribute></box>'
            )
        images += "</image>"
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("red car", "cat", "dog"))
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{images}</annotations>'
    write(root / "annotations.xml", text)


def percent(box: tuple, size: tuple[int, int]) -> dict:
    (x0, y0, x1, y1), (height, width) = box, size
    sides = {"width": 100 * (x1 - x0) / width, "height": 100 * (y1 - y0) / height}
    return {"x": 100 * x0 / width, "y": 100 * y0 / height, **sides, "rotation": 0}


def label_studio(root: Path) -> None:
    paint_all(root / "images")
    tasks = []
    for number, (name, (size, objects)) in enumerate(SCENES.items()):
        result = [
            {
                "original_width": size[1],
                "original_height": size[0],
                "image_rotation": 0,
                "value": {**percent(box, size), "rectanglelabels": [kind]},
                "id": f"r{region}",
                "from_name": "label",
                "to_name": "image",
                "type": "rectanglelabels",
            }
            for region, (kind, box) in enumerate(objects)
        ]
        data = {"image": f"/data/local-files/?d=shots%2F{name.replace('/', '%2F')}"}
        annotation = {"id": number, "result": result, "was_cancelled": False, "ground_truth": False}
        tasks.append({"id": number, "annotations": [annotation], "predictions": [], "data": data, "meta": {}})
    write(root / "project-1.json", tasks)


def kitti(root: Path) -> None:
    for name, (size, objects) in SCENES.items():
        stem = name.replace("/", "_").removesuffix(".png")
        paint(root / "training/image_2" / f"{stem}.png", size, objects)
        lines = [
            f"{kind.replace(' ', '_')} 0.00 0 -1.57 {x0:.2f} {y0:.2f} {x1:.2f} {y1:.2f} 1 1 1 1 1 1 0.1\n"
            for kind, (x0, y0, x1, y1) in objects
        ]
        lines.append("DontCare -1 -1 -10 1.00 1.00 5.00 5.00 -1 -1 -1 -1000 -1000 -1000 -10\n")
        write(root / "training/label_2" / f"{stem}.txt", "".join(lines))
        write(root / "training/calib" / f"{stem}.txt", "P0: 7.0 0 6.0 0 0 7.0 1.8 0 0 0 1 0\n")


def via_regions(objects: list) -> list:
    return [
        {
            "shape_attributes": {"name": "rect", "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0},
            "region_attributes": {"label": kind},
        }
        for kind, (x0, y0, x1, y1) in objects
    ]


def via(root: Path) -> None:
    paint_all(root)
    metadata = {
        f"{name}123": {"filename": name, "size": 123, "regions": via_regions(objects), "file_attributes": {}}
        for name, (_, objects) in SCENES.items()
    }
    settings = {"_via_settings": {"ui": {}}, "_via_attributes": {"region": {"label": {"type": "text"}}, "file": {}}}
    write(root / "via_project.json", {**settings, "_via_img_metadata": metadata, "_via_image_id_list": [*metadata]})


def via_csv(root: Path) -> None:
    paint_all(root)
    columns = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(columns.split(","))
    for name, (_, objects) in SCENES.items():
        regions = via_regions(objects) or [{"shape_attributes": {}, "region_attributes": {}}]
        for number, region in enumerate(regions):
            shape, attributes = json.dumps(region["shape_attributes"]), json.dumps(region["region_attributes"])
            rows.writerow([name, 123, "{}", len(objects), number, shape, attributes])
    write(root / "via_export.csv", text.getvalue())


def via_3(root: Path) -> None:
    paint_all(root)
    options = dict(enumerate(COLOURS))
    metadata = {
        f"{view}_{number}": {
            "vid": str(view),
            "flg": 0,
            "z": [],
            "xy": [2, x0, y0, x1 - x0, y1 - y0],
            "av": {"1": str([*COLOURS].index(kind))},
        }
        for view, (_, objects) in enumerate(SCENES.values(), start=1)
        for number, (kind, (x0, y0, x1, y1)) in enumerate(objects)
    }
    files = {
        str(number): {"fid": str(number), "fname": name, "type": 2, "loc": 1, "src": ""}
        for number, name in enumerate(SCENES, start=1)
    }
    content = {
        "project": {"pid": "__VIA_PROJECT_ID__", "vid_list": [*files]},
        "config": {},
        "attribute": {"1": {"aname": "kind", "type": 4, "options": options, "default_option_id": ""}},
        "file": files,
        "metadata": metadata,
        "view": {number: {"fid_list": [number]} for number in files},
    }
    write(root / "project.json", content)


def open_images(root: Path) -> None:
    mids = {name: f"/m/0{number}" for number, name in enumerate(COLOURS)}
    columns = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    lines = [columns, "ffff,xclick,/m/00,1,0.1,0.2,0.1,0.2,0,0,0,0,0"]  # an image that has not been downloaded
    for name, ((height, width), objects) in SCENES.items():
        stem = name.replace("/", "_").removesuffix(".png")
        paint(root / "train" / f"{stem}.png", (height, width), objects)
        for kind, (x0, y0, x1, y1) in objects:
            sides = f"{x0 / width},{x1 / width},{y0 / height},{y1 / height}"
            lines.append(f"{stem},xclick,{mids[kind]},1,{sides},0,0,{int(kind == 'red car')},0,0")
    write(root / "oidv6-train-annotations-bbox.csv", "\n".join(lines))
    write(root / "class-descriptions-boxable.csv", "\n".join(f"{mid},{name}" for name, mid in mids.items()))


def datumaro(root: Path) -> None:
    paint_all(root / "images/default")
    names = ["red car", "cat", "dog"]
    items = [
        {
            "id": name.removesuffix(".png"),
            "annotations": [
                {
                    "id": number,
                    "type": "bbox",
                    "attributes": {"occluded": False, "rotation": 0.0},
                    "group": 0,
                    "label_id": names.index(kind),
                    "z_order": 0,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                }
                for number, (kind, (x0, y0, x1, y1)) in enumerate(objects)
            ],
            "attr": {"frame": 0},
            "image": {"path": name, "size": list(size)},
        }
        for name, (size, objects) in SCENES.items()
    ]
    labels = [{"name": name, "parent": "", "attributes": []} for name in names]
    categories = {"label": {"label_groups": [], "labels": labels, "attributes": []}, "points": {"items": []}}
    content = {"dm_format_version": "1.0", "media_type": 2, "infos": {}, "categories": categories, "items": items}
    write(root / "annotations/default.json", content)


def supervisely(root: Path) -> None:
    classes = [{"title": name, "shape": "rectangle", "color": "#FFFFFF", "id": 1} for name in COLOURS]
    write(root / "meta.json", {"classes": classes, "tags": [], "projectType": "images"})
    for name, ((height, width), objects) in SCENES.items():
        folder, base = name.split("/")
        paint(root / folder / "img" / base, (height, width), objects)
        written = [
            {
                "id": number,
                "classId": 1,
                "geometryType": "rectangle",
                "tags": [],
                "classTitle": kind,
                "points": {"exterior": [[x0, y0], [x1, y1]], "interior": []},
            }
            for number, (kind, (x0, y0, x1, y1)) in enumerate(objects)
        ]
        content = {"description": "", "tags": [], "size": {"height": height, "width": width}, "objects": written}
        write(root / folder / "ann" / f"{base}.json", content)


SAMPLES = {
    "labelme": labelme,
    "cvat": cvat,
    "label_studio": label_studio,
    "kitti": kitti,
    "via": via,
    "via csv": via_csv,
    "via 3": via_3,
    "open_images": open_images,
    "datumaro": datumaro,
    "supervisely": supervisely,
}
