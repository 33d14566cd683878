"""The colour of each class, the same in every picture."""

Colour = tuple[int, int, int]
"""Red, green, blue in 0…255."""

# The first seven are those of Okabe and Ito (https://jfly.uni-koeln.de/color). Each further one is the colour farthest
# from all before it: the distance is the smallest in OKLab that people with normal vision, protanopia, deuteranopia or
# tritanopia see (Machado et al. 2009).
_PALETTE = """
    e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 87fff0 962d00 a569ff 5a00e1 964b78 b4d287 d2ffa5 781ea5 69d2ff
    b44b2d 964be1 78b478 f0c300 d200b4 872d78 8787e1 e1783c 96c369 2da5c3 a5f0b4 b4694b 780fff 694b96 8769d2 d2e187
    ffa5b4 ff0f5a 8796ff f04b87 875a96 d2005a ff5ac3 a53c1e 691ec3 5af0d2 3cd2a5 b469a5 96e15a ff87e1 a55a78 783cd2
    a5ffd2 e187a5 695aff e1f078 5ac31e 0087f0 96b45a f0b4f0 963c3c c387d2 e11ec3 96a55a b4a5ff 96d269 78c387 a54b4b
    698700 e1ff5a a50087 8778d2 3c5aa5 00785a c30069 ff1ee1 5a961e a52da5 c36969 693c96 2d965a e17896 69a52d 960f69
    b4c34b 5ae11e e10087 a55ac3 78e1d2 8787ff b400c3 87e1a5 5aa569 961eb4 d2f096 875ab4 f0f000 d26996 87f069 b45a96
    c30f87 2d4be1 875ad2 965a00 7878e1 873cf0 5a0ff0 5a873c 965aa5 ff78c3 b478b4 87d296 e14ba5 873c2d ffa5ff f078e1
    f03cf0 b43c96 b40f4b 7800d2 f02d87 a50f5a 963c78 d296d2 c3e12d 2db4b4 00ffc3 87ff69 9687d2 b469f0 a59600 78963c
"""
_COLOURS: list[Colour] = [(red, green, blue) for red, green, blue in map(bytes.fromhex, _PALETTE.split())]
_INSTANCE_SHADES = (1.0, 0.85, 0.93, 0.78)


def class_colour(label: int) -> Colour:
    """The colour of a class, which depends on its label only; the lower the labels, the easier to tell apart."""
    return _COLOURS[label % len(_COLOURS)]


def instance_colour(label: int, index: int) -> Colour:
    """The colour of one object: a shade of its class's colour.

    Args:
        label: The class.
        index: Index of the object among those of its class in the image.
    """
    shade = _INSTANCE_SHADES[index % len(_INSTANCE_SHADES)]
    red, green, blue = class_colour(label)
    return round(red * shade), round(green * shade), round(blue * shade)


def ink(colour: Colour) -> Colour:
    """Black or white, whichever has more contrast with a colour (WCAG 2)."""
    linear = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)
