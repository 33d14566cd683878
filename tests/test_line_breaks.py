import sys

from modeling_detr.line_breaks import fitted


def test_long_lines_break_between_words_in_a_terminal_only(monkeypatch):
    text = "note      the file a/b-c/with-a-long-name.jpg is left out\nshort"
    assert fitted(text, indent=10) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "34")
    assert fitted(text, indent=10).splitlines() == [
        "note      the file",
        "          a/b-c/with-a-long-name.jpg",  # whole, though it is longer than the line
        "          is left out",
        "short",
    ]
