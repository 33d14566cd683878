"""Colours of the classes: the same in every run, and safe for the colour-blind."""

import numpy as np

from modeling_detr.visualization import class_colour


# Machado et al. 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency", severity 1
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def oklab(colours, vision):
    """The colours in OKLab (https://bottosson.github.io/posts/oklab), as people with a kind of vision see them."""
    rgb = np.asarray(colours) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(vision)
    cones = [
        [0.41222147, 0.53633254, 0.05144599],
        [0.2119035, 0.68069955, 0.10739696],
        [0.08830246, 0.28171884, 0.6299787],
    ]
    lab = [
        [0.21045426, 0.79361779, -0.00407205],
        [1.9779985, -2.42859221, 0.45059371],
        [0.02590404, 0.78277177, -0.80867577],
    ]
    return np.cbrt(linear.clip(0, 1) @ np.transpose(cones)) @ np.transpose(lab)


def smallest_distance(num_classes):
    colours = [class_colour(label) for label in range(num_classes)]
    views = [oklab(colours, vision) for vision in VISIONS.values()]
    distances = [np.linalg.norm(view[:, None] - view[None], axis=-1) for view in views]
    return min(distance[~np.eye(num_classes, dtype=bool)].min() for distance in distances)


def test_the_first_colours_are_those_of_okabe_and_ito():
    assert [class_colour(label) for label in range(3)] == [(230, 159, 0), (86, 180, 233), (0, 158, 115)]


def test_everybody_can_tell_the_colours_of_classes_apart():
    assert smallest_distance(12) > 0.07
    assert smallest_distance(20) > 0.06
    assert smallest_distance(107) > 0.02  # about the least that people see side by side


def test_any_label_has_a_colour():
    assert class_colour(128) == class_colour(0)
    assert class_colour(1202) in [class_colour(label) for label in range(128)]
