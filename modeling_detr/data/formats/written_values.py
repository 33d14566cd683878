"""Convert values of JSON and YAML files, which may have any type and size."""

import re


INT64 = 2**63
_DECIMAL = re.compile(r"\s*[-+]?[0-9]{1,15}\.0*\s*")


def to_integer(value: object, least: int = -INT64, most: int = INT64 - 1) -> int:
    """Convert an integer, a float without a fraction, or a number written as text.

    Raises:
        ValueError: It is something else, or out of range; the message is what was expected.
    """
    expected = "an integer" if least == -INT64 else f"an integer from {least} to {most:,}"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(expected)
    try:
        number = int(value)
    except (ValueError, OverflowError):  # text, or not finite
        raise ValueError(expected) from None
    if not least <= number <= most or (isinstance(value, float) and number != value):
        raise ValueError(expected)
    return number


def is_integer(value: object) -> bool:
    """Whether `to_integer` converts `value`."""
    try:
        to_integer(value)
    except ValueError:
        return False
    return True


def meaning_of_id(value: object) -> object:
    """The integer that an id means, whether it is written as 3, 3.0, "3" or "3.0"; other text as it is; else None."""
    if isinstance(value, str):
        try:
            value = float(value) if _DECIMAL.fullmatch(value) else int(value)
        except ValueError:
            return value
    try:
        return to_integer(value)
    except ValueError:
        return None


def to_flag(value: object) -> bool:
    """Convert a flag such as `iscrowd`: a boolean, a number, or either as text, where "0" is False."""
    return value.strip().lower() not in ("", "0", "0.0", "false", "no") if isinstance(value, str) else bool(value)


def to_text(value: object) -> str:
    """Convert text or a number.

    Raises:
        ValueError: It is something else, or not valid Unicode; the message is what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("text")
    text = str(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("valid Unicode") from None
    return text
