"""The box of an object in Pascal VOC's XML, also of tools that write another shape instead of it.

    <bndbox>     <xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax>                 VOC, and most tools
    <polygon>    <pt><x>1</x><y>2</y></pt>… or <x1>1</x1><y1>2</y1>…                        LabelMe's XML, Roboflow
    <robndbox>   <cx>9</cx><cy>9</cy><w>8</w><h>4</h><angle>0.5</angle>, in radians         roLabelImg

Polygons and rotated boxes become their enclosing boxes.
"""

import math
from collections.abc import Iterable
from xml.etree.ElementTree import Element

from modeling_detr.data.annotations import to_number
from modeling_detr.data.findings import Findings, counted
from modeling_detr.data.formats import drawn_shapes
from modeling_detr.data.formats.drawn_shapes import Box


CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ROTATED = ("cx", "cy", "w", "h", "angle")


def read_box(element: Element) -> Box | None:
    """Read the box of an <object>; None if it has no shape.

    Raises:
        ValueError: A number is missing or invalid; the message says which.
    """
    box, polygon, rotated = (element.find(tag) for tag in ("bndbox", "polygon", "robndbox"))
    if box is not None:
        x0, y0, x1, y1 = (_number(box, key) for key in CORNERS)
        return x0, y0, x1, y1
    if rotated is not None:
        x, y, width, height, angle = (_number(rotated, key) for key in _ROTATED)
        left, top = x - width / 2, y - height / 2
        return drawn_shapes.rotated_box(left, top, width, height, math.degrees(angle), "centre").box
    return None if polygon is None else drawn_shapes.polygon(_points(polygon)).box


def note_other_shapes(elements: Iterable[Element], findings: Findings) -> None:
    """Note how many objects have a shape other than a box."""
    boxless = [element for element in elements if element.find("bndbox") is None]
    polygons, rotated = (sum(element.find(tag) is not None for element in boxless) for tag in ("polygon", "robndbox"))
    if polygons or rotated:
        shapes = [counted(polygons, "polygon")] * bool(polygons)
        shapes += [counted(rotated, "rotated box", "rotated boxes")] * bool(rotated)
        findings.notes.append(f"{' and '.join(shapes)} read as enclosing boxes.")


def _points(polygon: Element) -> list[tuple[float, float]]:
    points = polygon.findall("pt")
    if points:
        return [(_number(point, "x"), _number(point, "y")) for point in points]
    numbers = range(1, 1 + len(polygon) // 2)
    return [(_number(polygon, f"x{number}"), _number(polygon, f"y{number}")) for number in numbers]


def _number(element: Element, key: str) -> float:
    text = (element.findtext(key) or "").strip()
    try:
        return to_number(text)
    except ValueError:
        raise ValueError(f"{key} is '{text}', expected a number of pixels, such as 12 or 12.5") from None
