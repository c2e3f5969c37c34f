"""YAML text to plain values, remembering on which line each value was written.

Plain scalars follow YAML 1.2's core schema, without its surprises for people who write configs: `1e-3` is a float;
`on`, `yes`, `no`, `12:30`, `2024-01-01` and `007` are text; integers may be grouped (`1_000_000`). Keys are always
text. A key given twice is an error. `$VAR` and `${VAR}` in values are replaced from the environment, `$$` is a dollar.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from tml.common.errors import ConfigError

KeyPath = tuple[str | int, ...]

_PREFIX = "tag:yaml.org,2002:"
_TAGS = (
    ("null", re.compile(r"~|null|Null|NULL|")),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", re.compile(r"[-+]?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+)|0o[0-7]+|0x[0-9a-fA-F]+")),
    ("float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")),
    ("float", re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")),
    ("merge", re.compile(r"<<")),
)
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[^}]*)\})")


def scalar_tag(text: str) -> str:
    """The kind of a plain scalar: null, bool, int, float, merge or str."""
    return next((tag for tag, pattern in _TAGS if pattern.fullmatch(text) and not _leading_zero(text)), "str")


def _leading_zero(text: str) -> bool:
    # 007 is octal to some readers and decimal to others, so it is neither here.
    return re.fullmatch(r"[-+]?0[0-9]+", text) is not None


def dotted(path: KeyPath) -> str:
    """`("tables", 0, "name")` as `tables.0.name`."""
    return ".".join(str(part) for part in path)


@dataclass
class Document:
    """Values of a YAML text and where each of them was written.

    Args:
        source: the file's name, for messages.
        data: the values, made of dict, list, str, int, float, bool and None.
        places: key path -> "local.yaml, line 3".
    """

    source: str
    data: Any = None
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where the value at `path` was written, or the nearest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.source)


def read_document(text: str, source: str, environment: Mapping[str, str] | None = None) -> Document:
    """Parse one YAML document.

    Args:
        text: the YAML text.
        source: the file's name, for messages.
        environment: variables for `$VAR`; the process environment when None.

    Raises:
        ConfigError: broken YAML, a key given twice, an unset variable; each with the line.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = source if mark is None else f"{source}, line {mark.line + 1}, column {mark.column + 1}"
        fix = "indent with spaces, and quote text that holds ': ', '#', '@', '%' or a backtick"
        raise ConfigError(f"not valid YAML: {error.problem or error.context}", where=where, fix=fix) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", where=source) from None
    builder = _Builder(Document(source), os.environ if environment is None else environment)
    if root is not None:
        builder.document.data = builder.build(root, ())
    return builder.document


class _Loader(yaml.SafeLoader):
    """SafeLoader whose plain scalars follow `scalar_tag`."""

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PREFIX + (scalar_tag(value or "") if implicit[0] else "str")
        return str(super().resolve(kind, value, implicit))


class _Builder:
    """Turns nodes into values, one document at a time."""

    def __init__(self, document: Document, environment: Mapping[str, str]) -> None:
        self.document = document
        self._environment = environment
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.document.places[path] = self._line(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            raise ConfigError("an alias stands inside its own anchor", where=self._where(node, path))
        self._open.add(id(node))
        value = self._collection(node, path)
        self._open.discard(id(node))
        return value

    def _collection(self, node: yaml.Node, path: KeyPath) -> Any:
        if node.tag not in (_PREFIX + "map", _PREFIX + "seq"):
            raise self._unknown_tag(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _PREFIX + "merge":
                merged = self._merged(value_node, path) | merged
        own: dict[str, Any] = {}
        lines: dict[str, str] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _PREFIX + "merge":
                continue
            key = self._key(key_node, path)
            if key in own:
                raise ConfigError(
                    f"key {key!r} is given twice", where=self._where(key_node, (*path, key)),
                    limit=f"once; the first is at {lines[key]}", fix="keep one of the two",
                )  # fmt: skip
            if key in merged:
                self._forget((*path, key))
            own[key] = self.build(value_node, (*path, key))
            lines[key] = self.document.places[(*path, key)] = self._line(key_node)
        return merged | own

    def _merged(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in sources:
            value = self.build(source, path)
            if not isinstance(value, dict):
                raise ConfigError("'<<' merges mappings only", where=self._where(node, path), value=value)
            merged = value | merged
        return merged

    def _forget(self, prefix: KeyPath) -> None:
        for known in [known for known in self.document.places if known[: len(prefix)] == prefix]:
            del self.document.places[known]

    def _key(self, node: yaml.Node, path: KeyPath) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigError("a key must be text", where=self._where(node, path), fix="write key: value")
        return str(node.value)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        tag, text = node.tag.removeprefix(_PREFIX), node.value
        if "$" in text:
            text = self._substitute(text, node, path)
            if node.style is None and tag == "str":
                tag = scalar_tag(text)
        if tag in ("str", "merge"):
            return text
        return self._number(tag, text, node, path)

    def _number(self, tag: str, text: str, node: yaml.ScalarNode, path: KeyPath) -> Any:
        try:
            if tag == "null":
                return None
            if tag == "bool":
                return {"true": True, "false": False}[text.lower()]
            if tag == "int":
                return int(text, 0)
            if tag == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError):
            raise ConfigError(f"not of the kind !!{tag}", where=self._where(node, path), value=text) from None
        raise self._unknown_tag(node, path)

    def _substitute(self, text: str, node: yaml.Node, path: KeyPath) -> str:
        def value_of(match: re.Match[str]) -> str:
            if match["dollar"]:
                return "$"
            return self._variable(match["name"] or match["braced"], text, node, path)

        return _VARIABLE.sub(value_of, text)

    def _variable(self, name: str, text: str, node: yaml.Node, path: KeyPath) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError(
                f"{'${' + name + '}'} names no variable", where=self._where(node, path), value=text,
                limit="letters, digits and underscores", fix="write $$ for a literal dollar",
            )  # fmt: skip
        if name in self._environment:
            return self._environment[name]
        if name == "USER":
            # Containers often run without USER, and save folders are commonly named by it.
            return getpass.getuser()
        raise ConfigError(
            f"environment variable {name!r} is not set", where=self._where(node, path), value=text,
            fix=f"export {name}=..., or write $$ for a literal dollar",
        )  # fmt: skip

    def _unknown_tag(self, node: yaml.Node, path: KeyPath) -> ConfigError:
        return ConfigError("YAML tags are not supported here", where=self._where(node, path), value=node.tag)

    def _line(self, node: yaml.Node) -> str:
        return f"{self.document.source}, line {node.start_mark.line + 1}"

    def _where(self, node: yaml.Node, path: KeyPath) -> str:
        return f"{self._line(node)}, {dotted(path)}" if path else self._line(node)
