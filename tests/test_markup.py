"""Names from data in Markdown, judged by a parser."""

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from modeling_detr.markup import code_block, code_span, markdown_cell, markdown_text, python_string


HARMLESS = [
    *("cat", "traffic light", "traffic_light", "T-shirt (red)", "v1.0", "a, b", "32² < area > 96²"),
    *("斑马", "قطة", "गाय", "Straße", "🐈"),
]
HOSTILE = [
    "![](https://evil.example/pixel.png)",
    "[free money](https://evil.example)",
    "https://evil.example",
    "www.evil.example",
    "evil.example",
    "me@evil.example",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</code></pre><script>alert(1)</script>",
    "a`b``c```",
    "`",
    "``",
    "*bold* _thin_ ~~gone~~",
    "__init__",
    "a | b || c",
    "back\\slash\\|bar\\\\|",
    "ends with \\",
    "$\\frac{1}{2}$",
    "&lt;b&gt;",
    "@somebody #1",
    "# heading",
    " ",
    "\n\n---\nlicense: other\n---\n\n# Owned\n",
    "cat\n\n```\n# Owned",
    "[a]: https://evil.example",
    ":skull:",
    "\"'><svg onload=alert(1)>",
]
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def _tokens(markdown: str) -> list[Token]:
    return [part for token in PARSER.parse(markdown) for part in [token, *(token.children or [])]]


def _shown(name: str) -> str:
    return name.replace("\n", "\\n")


@pytest.mark.parametrize("name", HARMLESS)
def test_an_ordinary_name_stays_plain_text(name):
    assert markdown_text(name) == markdown_cell(name) == name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_line_of_markdown_has_no_effect(name):
    tokens = _tokens(f"It detects: {markdown_text('cat')}, {markdown_text(name)}.\n")
    assert [token.type for token in tokens if token.content == "" and token.nesting != 0] == [
        "paragraph_open",
        "paragraph_close",
    ]
    assert [token.content for token in tokens if token.type == "code_inline"] == [_shown(name)]
    assert {token.type for token in tokens} <= {"paragraph_open", "inline", "text", "code_inline", "paragraph_close"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_table_stays_in_its_cell(name):
    tokens = _tokens(f"| class | AP |\n|---|---:|\n| {markdown_cell(name)} | 0.5 |\n")
    assert [token.type for token in tokens].count("td_open") == 2
    (shown,) = [token.content for token in tokens if token.type == "code_inline"]
    assert shown.replace("\\u005c", "\\") == _shown(name)
    assert not {"link_open", "image", "html_inline", "html_block"} & {token.type for token in tokens}


@pytest.mark.parametrize("name", [*HARMLESS, *HOSTILE])
def test_a_code_span_shows_exactly_the_name(name):
    (shown,) = [token.content for token in _tokens(f"with {code_span(name)} here") if token.type == "code_inline"]
    assert shown == _shown(name)


def test_a_block_of_code_contains_all_of_it():
    code = "output_dir: 'a\n\n  ````\n\n  # Owned'\n"
    fence, heading = PARSER.parse(code_block(code, "yaml") + "# End\n")[:2]
    assert (fence.type, fence.info, fence.content) == ("fence", "yaml", code)
    assert heading.type == "heading_open"


@pytest.mark.parametrize("name", [*HARMLESS, *HOSTILE, "C:\\runs\\new", "quote\"and'", "\udcff"])
def test_a_python_string_is_one_literal(name):
    literal = python_string(name)
    assert isinstance(eval(literal, {}), str)
    assert "\n" not in literal
    literal.encode("utf-8")
