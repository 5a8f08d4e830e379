"""YAML that people write, read as it stands there: no line wins silently over another one of the same name.

Of YAML 1.1 the numbers of base 60 are left out as well: `2:8` is what stands there, not 128.
"""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def construct_document(self, node: yaml.Node) -> Any:
        _refuse_doubles(node, set())  # as it stands: building it puts merged maps (`<<`) into one another
        return super().construct_document(node)


def _refuse_doubles(node: yaml.Node, met: set[int]) -> None:
    if id(node) in met:  # an alias
        return
    met.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _refuse_doubles(inner, met)
    if isinstance(node, yaml.MappingNode):
        _refuse_double_keys(node)
        for pair in node.value:
            for inner in pair:
                _refuse_doubles(inner, met)


def _refuse_double_keys(node: yaml.MappingNode) -> None:
    seen = set[str]()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        if key.value in seen:
            where = f"line {key.start_mark.line + 1}"
            raise yaml.YAMLError(f"{key.value!r} is given twice, again in {where}; keep one")
        seen.add(key.value)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(rf"(?!.*:)(?:{rule.pattern})", re.VERBOSE) if tag in _NUMBERS else rule) for tag, rule in rules
    ]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str | bytes) -> Any:
    """Raises yaml.YAMLError, in one line, where it is none or gives a key twice."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise yaml.YAMLError(" ".join(str(error).split())) from error
