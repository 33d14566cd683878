"""COCO's class names by category id; the original's released models use the ids as labels."""

_UNUSED = "N/A"  # ids that COCO does not use; their rows in the class head are untrained

# Id of the first name → names with consecutive ids
_THINGS = {
    1: "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant",
    13: "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
    27: "backpack, umbrella",
    31: "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket, bottle",
    46: "wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, "
    "pizza, donut, cake, chair, couch, potted plant, bed",
    67: "dining table",
    70: "toilet",
    72: "tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator",
    84: "book, clock, vase, scissors, teddy bear, hair drier, toothbrush",
}
_STUFF = {
    92: "banner, blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood, flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform, playingfield",
    147: "railroad, river, road",
    151: "roof",
    154: "sand, sea, shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone, wall-tile, wall-wood, water-other",
    180: "window-blind, window-other",
    184: "tree-merged, fence-merged, ceiling-merged, sky-other-merged, cabinet-merged, table-merged, "
    "floor-other-merged, pavement-merged, mountain-merged, grass-merged, dirt-merged, paper-merged, "
    "food-other-merged, building-other-merged, rock-merged, wall-other-merged, rug-merged",
}
LAST_THING = 90


def coco_id2label(num_labels: int) -> dict[int, str] | None:
    """Class names of the original's 91 detection or 250 panoptic labels; None for any other number of classes."""
    tables = {91: [_THINGS], 250: [_THINGS, _STUFF]}.get(num_labels)
    if tables is None:
        return None
    names = dict.fromkeys(range(num_labels), _UNUSED)
    for table in tables:
        for first, run in table.items():
            names.update(enumerate(run.split(", "), start=first))
    return names
