"""Text from data, such as class and file names, in Markdown: shown as it is, without any effect."""

import json
import re

from modeling_detr.errors_detr import printable


# Markdown's syntax is ASCII punctuation. A dot or colon matters only before a letter (links, :emoji:), an underscore
# only at the edge of a word, "<" not before a space, and ">" not within a line.
_MARKDOWN_SYNTAX = re.compile(r"[\\`*{}\[\]#!|~$&@/]|<(?! )|[.:](?=[^\W\d_])|(?<![^\W_])_|_(?![^\W_])")


def markdown_text(text: object) -> str:
    """A text within a line of Markdown: a code span if it has characters with a meaning in Markdown.

    In a code span, unlike after backslashes, no renderer looks for links, HTML, formulas or mentions.
    """
    line = printable(text)
    return code_span(line) if _MARKDOWN_SYNTAX.search(line) or line != line.strip() else line


def code_span(text: object) -> str:
    """A text as a code span of Markdown."""
    line = printable(text) or " "
    fence = "`" * (_longest_run("`", line) + 1)
    is_padded = line.strip() and (line.startswith(("`", " ")) or line.endswith(("`", " ")))
    space = " " if is_padded else ""  # Markdown removes it again
    return f"{fence}{space}{line}{space}{fence}"


def markdown_cell(text: object) -> str:
    """A text within a cell of a table of Markdown, see `markdown_text`."""
    # renderers disagree on a backslash before an escaped bar
    return re.sub(r"\\+(?=\|)", lambda match: "\\u005c" * len(match[0]), markdown_text(text)).replace("|", "\\|")


def code_block(code: str, language: str) -> str:
    """Code of several lines as a fenced block of Markdown.

    Args:
        code: The code; it ends with a line break.
        language: Name of its language.
    """
    lines = "".join(f"{printable(line)}\n" for line in code.removesuffix("\n").split("\n"))
    fence = "`" * max(3, _longest_run("`", lines) + 1)
    return f"{fence}{language}\n{lines}{fence}\n"


def python_string(text: object) -> str:
    """A text as a string literal of Python."""
    return json.dumps(printable(text), ensure_ascii=False)


def _longest_run(character: str, text: str) -> int:
    return max(map(len, re.findall(f"{re.escape(character)}+", text)), default=0)
