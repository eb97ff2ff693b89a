"""YAML for recipes: it follows 1.2 where PyYAML, which follows 1.1, would misread them. Knows nothing of recipes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from reprune.errors import short

_MOST = 100_000  # values and keys of a YAML text with its aliases expanded: far beyond any recipe


class _Loader(yaml.SafeLoader):
    """YAML in which 2:4 is text, not the number 124 in base 60 as in YAML 1.1, and in which keys are unique.

    1e-3 is a number, while in YAML 1.1 it is text, as it has no decimal point.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    why = f"expected each key once, but {key.value!r} appears twice"
                    raise yaml.composer.ComposerError(None, None, why, key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST:  # before 6.0.4, PyYAML repeats the keys of repeated merges (<<)
            raise _too_many()


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as a number, also where YAML 1.1 would not."""


def read_yaml(text: str) -> Any:
    """The contents of YAML text; raises `yaml.YAMLError` or `RecursionError` if it cannot be read.

    Aliases that grow exponentially or contain themselves are refused.
    """
    try:
        content = yaml.load(text, _Loader)
    except (AttributeError, LookupError, ValueError) as error:  # an invalid date (2026-13-45), or value of a tag
        raise yaml.YAMLError(f"a value does not fit its tag or notation ({short(error)})") from None
    parts = [content]
    for one in parts:
        parts += [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list | tuple) else ()
        if len(parts) > _MOST:
            raise _too_many()
    return content


def _too_many() -> yaml.YAMLError:
    return yaml.YAMLError(f"with its aliases expanded it has more than {_MOST} parts")


def write_yaml(content: Mapping[str, Any], width: int = 80) -> str:
    """YAML text from which `read_yaml` returns the same contents, with the keys in their order."""
    written: str = yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
    return written


_INT, _FLOAT, _FIRST = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", list("-+.0123456789")
_EXPONENT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != _INT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), _FIRST)
_Loader.add_implicit_resolver(_FLOAT, _EXPONENT, _FIRST)
_Dumper.add_implicit_resolver(_FLOAT, _EXPONENT, _FIRST)
