"""The page of an explanation: maps and curves of each detection, and the encoder's attention from any point."""

from collections.abc import Mapping, Sequence

import torch

from modeling_detr.explanation.explain import Explanation
from modeling_detr.explanation.faithfulness import Curves, Faithfulness
from modeling_detr.explanation.points import PointMaps, covering, to_bytes
from modeling_detr.image_processing_detr import RawImage
from modeling_detr.pages import Block, Chart, Fact, Figure, Heat, HeatObject, Line, Page, Section, Table, Text
from modeling_detr.visualization import Canvas


_SHORTEST_SIDE, _PICTURE_SIDE = 640, 960  # of the picture in pixels: the shortest if the image is small, the longest


def explanation_page(
    image: RawImage,
    explanation: Explanation,
    id2label: Mapping[int, str],
    faithfulness: Faithfulness | None = None,
    points: PointMaps | None = None,
    facts: Sequence[Fact] = (),
) -> Page:
    """Builds the page.

    Args:
        image: The image that was explained.
        explanation: What `explain` returned for it.
        id2label: Names of the classes.
        faithfulness: Of the explanation; None: the page has no curves.
        points: Of the image; None: the page has no points.
        facts: The head of the page.
    """
    picture = Canvas.of(image, shortest_side=_SHORTEST_SIDE, longest_side=_PICTURE_SIDE).picture
    figure = Figure.of(picture, "The image with the chosen map", _PICTURE_SIDE)
    sections = [Section("Detections", _detections(figure, explanation, id2label, faithfulness))]
    if points is not None:
        sections.append(Section("Encoder self-attention", _points(figure, explanation, points)))
    count = len(explanation.scores)
    return Page("Why is this box here?", sections, [(f"{count}", "detection" + "s" * (count != 1))], facts)


def _detections(
    figure: Figure, explanation: Explanation, id2label: Mapping[int, str], faithfulness: Faithfulness | None
) -> list[Block]:
    if not len(explanation.scores):
        return [Text("No detection has a score of at least the threshold; lower it to see more.")]
    if not explanation.maps:
        return [Text("No method was chosen, so there are no maps.")]
    height, width = explanation.image_size
    objects = []
    for index, (label, score, box) in enumerate(
        zip(explanation.labels.tolist(), explanation.scores.tolist(), explanation.boxes.tolist(), strict=True)
    ):
        x0, y0, x1, y1 = (corner / side for corner, side in zip(box, (width, height) * 2, strict=True))
        blocks = [] if faithfulness is None else _curves(faithfulness, index)
        query = Text(f"Query {int(explanation.queries[index])}, score {score:.3f}")
        objects.append(HeatObject(f"{id2label[label]} {score:.2f}", (x0, y0, x1, y1), [query, *blocks]))
    rows, columns = covering(explanation.extent)
    maps = to_bytes(torch.stack(list(explanation.maps.values()), 1)[..., :rows, :columns])
    words = (
        "Click a detection or choose it from the list: its map shows which parts of the image its query attends to, "
        "by the chosen method. Black to yellow, each map scaled to its own maximum."
    )
    layers = list(explanation.maps)
    return [Text(words), Heat(figure, explanation.image_size, maps, layers, explanation.extent, objects)]


def _curves(faithfulness: Faithfulness, index: int) -> list[Block]:
    """The areas and curves of a detection."""
    curves = {name: Curves(*(kind[index] for kind in pair)) for name, pair in faithfulness.methods.items()}
    random = [Curves(*(kind[index] for kind in pair)) for pair in zip(*faithfulness.random, strict=True)]
    rows: list[Sequence[object]] = [(name, *map(float, pair.areas())) for name, pair in curves.items()]
    if random:
        rows.append(("random", *(float(area[:, index].mean()) for area in faithfulness.random.areas())))
    charts = [
        Chart(
            title,
            "of the pixels",
            [
                *(Line("random", getattr(pair, kind).tolist(), quiet=True) for pair in random),
                *(Line(name, getattr(pair, kind).tolist()) for name, pair in curves.items()),
            ],
        )
        for kind, title in (
            ("deletion", "Deletion: the score while pixels are removed, those marked most first"),
            ("insertion", "Insertion: the score while they are put into a blurred image"),
        )
    ]
    table = Table(("area", "deletion", "insertion"), rows)
    words = "A map is better than chance for this detection if its deletion is below that of random maps, and its "
    words += "insertion above."
    return [table, Text(words), *charts]


def _points(figure: Figure, explanation: Explanation, points: PointMaps) -> list[Block]:
    height, width = explanation.image_size
    x, y = width / 2, height / 2
    if len(explanation.points):
        x, y = explanation.points[0].tolist()
    elif len(explanation.boxes):
        x, y = explanation.boxes[0].view(2, 2).mean(0).tolist()
    num_layers = points.maps.shape[1] - 1
    words = (
        "Click a point, or move it with the arrow keys: the map shows where the encoder looks from there, as the mean "
        "over heads. The last layer is that of figure 3 of the DETR paper."
    )
    if points.cell_size > 1:
        words += f" To keep this file small, {points.cell_size}x{points.cell_size} feature cells are shown as one."
    heat = Heat(
        figure,
        explanation.image_size,
        points.maps,
        [*(f"layer {number}" for number in range(1, num_layers + 1)), "mean of layers"],
        points.extent,
        start_point=(y / height * points.extent[0], x / width * points.extent[1]),
        start_layer=num_layers - 1,
    )
    return [Text(words), heat]
