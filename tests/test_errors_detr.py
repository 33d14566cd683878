import pickle

import pytest

from modeling_detr.errors_detr import DatasetError, printable


LEGITIMATE = [
    *("斑马", "قطة", "गाय", "Straße", "cat 🐈", "a\\b", "naïve\xa0café", 'O\'Brien & "sons"'),
    *("\U0001f469\u200d\U0001f467", "क्\u200dष"),  # with joiners
]


@pytest.mark.parametrize("name", LEGITIMATE)
def test_names_in_any_script_are_printed_as_they_are(name):
    assert printable(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2Jcat", r"\u001b[2Jcat"),
        ("\x9b2Jcat", r"\u009b2Jcat"),
        ("cat\nerror: forged", r"cat\nerror: forged"),
        ("cat\r\t\u2028dog", r"cat\r\t\u2028dog"),
        ("photo\u202egnp.exe", r"photo\u202egnp.exe"),
        ("\udcff.jpg", r"\udcff.jpg"),
    ],
)
def test_characters_that_control_a_terminal_become_escapes(name, shown):
    assert printable(name) == shown
    assert printable(shown) == shown


def test_an_error_quotes_names_from_data_on_one_harmless_line():
    error = DatasetError("a\x1b[2J.jpg", "got class 'x\ny'", "rename it", {"format": "c\x07"})
    assert str(error) == r"a\u001b[2J.jpg: got class 'x\ny'; rename it (format='c\x07')."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(DatasetError("a", "expected one of b, c.", "choose one")) == "a: expected one of b, c; choose one."
    # PyTorch rebuilds errors of loader processes from the text of their traceback, which has several lines
    assert str(DatasetError("Caught it.\n\x1b[2J")) == "Caught it.\n\\u001b[2J"
