"""YAML as settings files and `--set` use it: what could be misread is text, and mistakes are named in plain words.

YAML 1.1 reads 010 as 8, 1:30 as 90 and 1_000 as 1000. Here they are text, which no setting accepts as a number. All
other numbers are those that `yaml.safe_dump` writes, so that the config.yaml of every earlier run has the same values.
For the same reason 1e-4, which safe_dump writes without quotes for a text, is text here; settings read it as a number.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from tdmr1_rewards.texts.documents import MOST_DEPTH

INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+|[-+]\.[0-9]+")
"""A decimal number that YAML 1.1 reads as text."""
MOST_CHARACTERS = 2**18
"""Longest text that is read. PyYAML needs some seconds for it."""
MOST_VALUES = 100_000
"""Most keys and values of a text, where each alias (*name) counts as often as what it stands for."""
NUMBER_TAGS = {"tag:yaml.org,2002:int": (INTEGER, "-+0123456789"), "tag:yaml.org,2002:float": (FLOAT, "-+0123456789.")}
"""The tags of numbers, with their form and the characters that they may begin with."""

EXPLANATIONS = {
    r"but found another document": "the line --- begins a second document, and a file has only one",
    r"expected '<document start>'.*": "something follows the line ..., which ends the document",
    r"second occurrence": "this anchor (&) was defined before; give each anchor its own name",
    r"found undefined alias '(.*)'": r"the alias *\1 has no anchor &\1",
    r"mapping values are not allowed here": "the colon does not fit here: the line is indented too far, the line above "
    "is not complete, or a text with a colon has no quotes",
    r"could not find expected ':'": "a line above has no colon after its key",
    r"expected ',' or ']'.*": "the list [ from line START has no end ] or lacks a comma",
    r"expected ',' or '\}'.*": "the table { from line START has no end } or lacks a comma",
    r"found unexpected end of stream": "the quoted text from line START has no closing quote",
    r"found character '\\t' that cannot start any token": "a tab is used as indentation; use blanks",
    r"found character '(.)' that cannot start any token": r"a text cannot begin with \1; put it in quotes",
    r"could not determine a constructor for the tag '(?:tag:yaml.org,2002:)?(.*)'": r"the tag \1 is unknown; remove it",
    r"expected <block end>, but found '-'": "a list item (-) stands among keys; indent it below its key",
    r"expected <block end>, but found '\?'": "a key stands among list items; indent it or remove the list",
    r"expected <block end>, but found '<scalar>'": "text follows a value that is already complete",
    r"expected <block end>.*": "the indentation differs from that of the lines above",
    r"expected the node content, but found '(.*)'": r"a value is expected in place of \1",
    r"found unknown escape character '(.*)'": r"\\\1 means nothing in double quotes; use single quotes",
    r"expected a mapping or list of mappings for merging.*": "<<: can only insert a table",
    r"expected alphabetic or numeric character.*": "a name is expected after & or *; put a text in quotes",
    r"expected chomping or indentation indicators.*": "after | or >, the text begins in the next line",
    r"Exceeds the limit.*": "a number has too many digits",
    r"maximum recursion depth exceeded.*": f"lists or tables are nested more than {MOST_DEPTH} levels deep",
    r"(?:month|day|hour|minute|second|year|offset)\b.*": "a date or time does not exist; put a text in quotes",
    r"found incompatible YAML document.*": "this version of YAML is not supported; remove the line %YAML",
}
"""What PyYAML reports (a pattern) in plain words. START is the line where the list, table or text begins."""


class SettingsLoader(yaml.SafeLoader):
    """The safe loader of PyYAML without octal, binary and sexagesimal numbers, and without _ in numbers."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the base class declares it so)
        first: [(tag, form) for tag, form in forms if tag not in NUMBER_TAGS]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """The value of a number. Raises YAMLError for an explicit tag (`!!int 010`) on something else."""
        text = self.construct_scalar(node)
        read = self.construct_yaml_float if node.tag.endswith(":float") else self.construct_yaml_int
        if not any(form.fullmatch(text) for form in (NUMBER_TAGS[node.tag][0], INTEGER)):
            raise _refused(node, f"{text!r} is not a number in decimal digits")
        number: int | float = read(node)
        return number


for _tag, (_form, _first) in NUMBER_TAGS.items():
    SettingsLoader.add_implicit_resolver(_tag, re.compile(rf"(?:{_form.pattern})\Z"), list(_first))
    SettingsLoader.add_constructor(_tag, SettingsLoader.construct_number)


def load_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises YAMLError also for a key that occurs twice, for a control character, for impossible numbers and dates, and
    for a text beyond the limits: MOST_CHARACTERS, MOST_VALUES, MOST_DEPTH. `explain` says what is wrong.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.MarkedYAMLError(problem=f"it has {len(text)} characters; at most {MOST_CHARACTERS} are read")
    _check_characters(text)
    loader = SettingsLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, 1, {})
        return loader.construct_document(node)
    except (ValueError, RecursionError) as error:
        raise yaml.MarkedYAMLError(problem=" ".join(str(error).split())) from error
    finally:
        loader.dispose()


def explain(error: yaml.YAMLError) -> tuple[str, int | None]:
    """What is wrong in a YAML text, in plain words, and the line if it is known."""
    mark, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or "it cannot be read"
    for pattern, plain in EXPLANATIONS.items():
        if match := re.fullmatch(pattern, problem, re.DOTALL):
            problem = match.expand(plain).replace("START", str(context.line + 1 if context else 1))
            break
    return problem, mark.line + 1 if mark else None


def _check_characters(text: str) -> None:
    """Raise YAMLError for a character that YAML does not allow, such as NUL."""
    match = yaml.SafeLoader.NON_PRINTABLE.search(text)
    if match is not None:
        start = match.start()
        line, column = text.count("\n", 0, start), start - text.rfind("\n", 0, start) - 1
        problem = f"character {column + 1} of the line is U+{ord(match[0]):04X}, which YAML does not allow; remove it"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=yaml.Mark("", start, line, column, None, 0))


def _check_node(node: yaml.Node, depth: int, counted: dict[int, int]) -> int:
    """The number of values in a node, which an alias repeats. Raises YAMLError beyond the limits.

    Raises it also for a mapping that has the same key twice, of which PyYAML would use the last value. `counted` has
    the numbers of nodes that are complete, and 0 for those that contain `node`.
    """
    if (known := counted.get(id(node))) is not None:
        if not known:
            raise _refused(node, "an alias (*) stands inside the value that its anchor (&) names")
        return known
    if depth > MOST_DEPTH:
        raise _refused(node, f"lists or tables are nested more than {MOST_DEPTH} levels deep")
    counted[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [value for _, value in node.value]
        _check_mapping(node)
    number = 1
    for each in inner:
        number += _check_node(each, depth + 1, counted)
        if number > MOST_VALUES:
            raise _refused(
                each, f"it has more than {MOST_VALUES} values, counting each alias (*) as what it stands for"
            )
    counted[id(node)] = number
    return number


def _refused(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _check_mapping(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused(key, "a list or table cannot be a key")
        name, line = (key.tag, str(key.value)), key.start_mark.line + 1
        if name in lines:
            where = "in the same line" if lines[name] == line else f"in lines {lines[name]} and {line}"
            raise _refused(key, f"the key {key.value!r} occurs twice, {where}")
        lines[name] = line
