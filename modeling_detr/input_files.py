"""Read files that others have written, in bounded time and memory.

A dataset from the web may contain anything: a named pipe in place of a file, which blocks whoever opens it, a line of
a gigabyte, 100,000 nested lists, ten lines of YAML that expand to gigabytes. Each is an error that names the file.
"""

import codecs
import contextlib
import json
import os
import re
import stat
from collections.abc import Collection, Hashable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from modeling_detr.errors_detr import FileContentError, FileMissingError, FileReadError


MAX_JSON_BYTES = 8 << 30  # the annotations of the largest public datasets have a few gigabytes
MAX_LIST_BYTES = 256 << 20  # a list of files, or a log: a name per line, millions of lines
MAX_XML_BYTES = 1 << 30  # the annotations of a dataset in one file
MAX_TEXT_BYTES = 16 << 20  # the annotations of a single image
MAX_YAML_BYTES = 1 << 20
MAX_YAML_DEPTH = 64
MAX_YAML_VALUES = 50_000  # after aliases are expanded

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_XML_ENCODING = re.compile(rb"\s*(?:\xef\xbb\xbf)?<\?xml[^>]{0,100}?encoding\s*=\s*[\"']([\w.-]{1,40})[\"']", re.ASCII)
# As declared → the codec of Python that has all of its characters; the parser knows single bytes and UTF only.
_XML_ENCODINGS = {
    **dict.fromkeys(("gbk", "gb2312", "gb18030", "cp936", "x_gbk", "euc_cn"), "gb18030"),
    **dict.fromkeys(("big5", "big_5", "cp950", "big5_hkscs"), "big5hkscs"),
    **dict.fromkeys(("shift_jis", "sjis", "x_sjis", "cp932", "ms932", "windows_31j", "shift_jisx0213"), "cp932"),
    **dict.fromkeys(("euc_jp", "eucjp", "x_euc_jp"), "euc_jp"),
    **dict.fromkeys(("iso_2022_jp",), "iso2022_jp"),
    **dict.fromkeys(("euc_kr", "ks_c_5601_1987", "cp949", "uhc", "windows_949"), "cp949"),
}

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# Bytes and text


def require_file(path: str | Path) -> int:
    """Return the size of a file in bytes, without opening it.

    Raises:
        FileMissingError: It does not exist.
        FileReadError: It is not a regular file, and opening it might block or never end; or it cannot be accessed.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 (called for every image; a Path takes twice as long)
    except FileNotFoundError as error:
        raise FileMissingError(path, "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise _read_error(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
        raise FileReadError(path, f"is {kind}, expected a file", "replace or remove it")
    return status.st_size


def is_file(path: str | Path) -> bool:
    """Whether `path` is a regular file; also False for names that no file can have."""
    try:
        require_file(path)
    except OSError:
        return False
    return True


def is_folder(path: str | Path) -> bool:
    """Whether `path` is a folder; also False for names that no folder can have."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def read_bytes(path: str | Path, max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes` bytes.

    Raises:
        FileMissingError: It does not exist.
        FileReadError: It is larger, is not a regular file, or cannot be read.
    """
    size = require_file(path)
    if size > max_bytes:
        raise FileReadError(
            path,
            f"has {size:,} bytes, more than the limit of {max_bytes:,}",
            "check that it is the right file, or divide it",
        )
    try:
        with Path(path).open("rb") as file:
            return file.read(size)  # not more: files in /proc have size 0 and may never end
    except (OSError, MemoryError) as error:
        raise _read_error(path, error) from error


def read_ends(path: str | Path, num_bytes: int) -> bytes:
    """Read at most `num_bytes` bytes at the beginning of a regular file, and as many at its end.

    Raises:
        FileMissingError: It does not exist.
        FileReadError: It is not a regular file, or cannot be read.
    """
    size = require_file(path)  # 0 for files in /proc, which may never end
    try:
        with Path(path).open("rb") as file:
            head = file.read(min(num_bytes, size))
            file.seek(max(len(head), size - num_bytes))
            return head + file.read(min(num_bytes, size - len(head)))
    except OSError as error:
        raise _read_error(path, error) from error


def read_text(path: str | Path, max_bytes: int = MAX_TEXT_BYTES, errors: str = "strict") -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark, as Windows tools write it; see `read_bytes`.

    Args:
        path: The file.
        max_bytes: Largest size.
        errors: What to do with bytes that are not UTF-8; see `bytes.decode`.

    Raises:
        FileContentError: It is not UTF-8.
    """
    try:
        content = read_bytes(path, max_bytes)
        return content.decode("utf-16" if content.startswith(UTF16_MARKS) else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise FileContentError(path, f"not a text file in UTF-8 ({error})", "save it as UTF-8") from error


def _read_error(path: str | Path, error: Exception) -> FileReadError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return FileReadError(path, f"cannot be read ({reason})", "check the file and its permissions")


# JSON and XML


def read_json(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file; see `read_bytes` and `parse_json`."""
    return parse_json(path, read_bytes(path, max_bytes))


def parse_json(path: str | Path, text: str | bytes) -> Any:
    """Parse the JSON text of a file.

    Raises:
        FileContentError: It is not valid JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise FileContentError(path, "not valid JSON (nested too deeply)", "write it again") from error
    except (ValueError, MemoryError) as error:  # ValueError: invalid JSON, not UTF-8, or an integer of 5,000 digits
        reason = str(error).partition("; use sys.")[0] or "not enough memory"
        raise FileContentError(
            path, f"not valid JSON ({reason})", "the file may be truncated; write it again"
        ) from error


def read_xml(path: str | Path) -> ElementTree.Element:
    """Read an XML file; see `read_bytes`.

    Raises:
        FileContentError: It is not well-formed.
    """
    content = read_bytes(path, MAX_TEXT_BYTES)
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        decoded = _decoded_xml(content)
        try:
            if decoded is not None:
                return ElementTree.fromstring(decoded)
        except (ElementTree.ParseError, ValueError):
            pass  # the first error says what is wrong
        raise FileContentError(path, f"not well-formed XML ({error})", "correct or remove it") from error


def _decoded_xml(content: bytes) -> str | None:
    """Decode XML in an encoding that the parser does not know, or that is UTF-8 but declared as UTF-16."""
    declared = _XML_ENCODING.match(content)
    if declared is None:
        return None
    name = declared[1].decode("ascii").lower().replace("-", "_")
    for encoding in (_XML_ENCODINGS.get(name, ""), "utf-8-sig" if name.startswith("utf") else ""):
        if encoding:
            with contextlib.suppress(UnicodeDecodeError):
                return content.decode(encoding)
    return None


def iterate_xml(path: str | Path) -> Iterator[ElementTree.Element]:
    """Iterate over the children of the root of an XML file, without keeping those that have been used.

    Raises:
        FileReadError: The file is too large, is not a regular file, or cannot be read.
        FileContentError: It is not well-formed.
    """
    size = require_file(path)
    if size > MAX_XML_BYTES:
        message = f"has {size:,} bytes, more than the limit of {MAX_XML_BYTES:,}"
        raise FileReadError(path, message, "check that it is the right file, or divide it")
    if size == 0:  # also of files in /proc, which may never end
        raise FileContentError(path, "not well-formed XML (an empty file)", "correct or remove it")
    depth, root = 0, None
    try:
        with Path(path).open("rb") as stream:
            for event, element in ElementTree.iterparse(stream, ("start", "end")):
                depth += 1 if event == "start" else -1
                root = element if root is None else root
                if event == "end" and depth == 1:
                    yield element
                    root.clear()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise FileContentError(path, f"not well-formed XML ({error})", "correct or remove it") from error
    except OSError as error:
        raise _read_error(path, error) from error


# YAML


class _Loader(yaml.SafeLoader):
    """Safe YAML within limits, with unique keys and the numbers and booleans of YAML 1.2."""

    def __init__(self, stream: str, text_keys: Collection[str] = ()) -> None:
        super().__init__(stream)
        self._text_keys = text_keys
        self._values = 0
        self._sizes: dict[int, int] = {}  # of composed nodes, by identity

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, and count the values in it, those of an alias once for each time that it is used."""
        self._values += 1
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if node is None or id(node) in self._sizes:
            return node
        if is_alias:
            raise yaml.composer.ComposerError(None, None, "an alias inside its own anchor", node.start_mark)
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        size = 1 + sum(self._sizes[id(child)] for child in children)
        if max(size, self._values) > MAX_YAML_VALUES:
            message = f"more than {MAX_YAML_VALUES:,} values, with aliases expanded"
            raise yaml.composer.ComposerError(None, None, message, node.start_mark)
        self._sizes[id(node)] = size
        return node

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document; the values below `text_keys` are text, whatever they look like."""
        document = super().get_single_node()
        for key, value in document.value if isinstance(document, yaml.MappingNode) else []:
            if isinstance(key, yaml.ScalarNode) and key.value in self._text_keys and value.id != "scalar":
                entries = value.value if isinstance(value, yaml.SequenceNode) else [entry for _, entry in value.value]
                for entry in entries:
                    if isinstance(entry, yaml.ScalarNode) and entry.value:
                        entry.tag = "tag:yaml.org,2002:str"
        return document

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        """Scan a bracket or brace; PyYAML looks ahead, so deep nesting would take seconds before it is composed."""
        if self.flow_level >= MAX_YAML_DEPTH:
            raise yaml.scanner.ScannerError(None, None, "nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; a repeated key is an error."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a list or mapping as a key", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"repeated key '{key.value}'", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def read_yaml(path: str | Path, text_keys: Collection[str] = ()) -> Any:
    """Read a YAML file; see `read_text` and `parse_yaml`."""
    return parse_yaml(path, read_text(path, MAX_YAML_BYTES), text_keys)


def parse_yaml(where: str | Path, text: str, text_keys: Collection[str] = ()) -> Any:
    """Parse YAML: plain values, lists and mappings with unique keys.

    `no`, `on` and `1:30` are text and `1e-4` is a number, as in YAML 1.2.

    Args:
        where: The file, for messages.
        text: Its text.
        text_keys: Keys of the document whose lists and mappings contain only text, whatever it looks like.

    Raises:
        FileContentError: It is not valid YAML, is nested too deeply, or expands to too many values; the message names
            the line.
    """
    try:
        return _Loader(text, text_keys).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark is not None else where
        raise FileContentError(place, f"invalid YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        raise FileContentError(where, f"invalid YAML: {error.reason} (character {error.position + 1})") from error
    except RecursionError as error:
        raise FileContentError(where, "invalid YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:  # of a tag: `!!int abc`
        raise FileContentError(where, f"invalid YAML: {' '.join(str(error).split())}") from error
