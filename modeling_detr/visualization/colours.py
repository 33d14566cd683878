"""The colour of each class, the same in every picture."""

import colorsys


Colour = tuple[int, int, int]
"""Red, green, blue in 0…255."""

_GOLDEN_RATIO = 0.618034  # steps of this size around the colour wheel give any number of classes distinct hues
_INSTANCE_SHADES = (1.0, 0.7, 0.85, 0.55)


def class_colour(label: int) -> Colour:
    """The colour of a class; consecutive labels have clearly different colours."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + label * _GOLDEN_RATIO) % 1, (0.9, 0.65)[label // 12 % 2], 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def instance_colour(label: int, index: int) -> Colour:
    """The colour of one object: a shade of its class's colour.

    Args:
        label: The class.
        index: Index of the object among those of its class in the image.
    """
    shade = _INSTANCE_SHADES[index % len(_INSTANCE_SHADES)]
    red, green, blue = class_colour(label)
    return round(red * shade), round(green * shade), round(blue * shade)
