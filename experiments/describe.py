"""Print every option with its type, default and sentence, by section (make options)."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from itertools import pairwise
from typing import get_type_hints

from omegaconf import MISSING

from experiments.schema import SYSTEMS

WIDTH = 100


@dataclass(frozen=True)
class Option:
    """One option as SET= takes it; `systems` are those that have it."""

    key: str
    type: str
    default: str
    sentence: str
    systems: tuple[str, ...]

    @property
    def section(self) -> str:
        """The key without its last part; empty at the top."""
        return self.key.rpartition(".")[0]


def all_options() -> list[Option]:
    """Every option of every system once, in the schema's order."""
    holders: dict[str, tuple[str, ...]] = {}
    found: dict[str, tuple[str, str, str]] = {}
    for system, root in SYSTEMS.items():
        for key, *rest in leaves(root):
            holders[key] = (*holders.get(key, ()), system)
            found[key] = (rest[0], rest[1], rest[2])
    return [Option(key, *rest, holders[key]) for key, rest in found.items()]


def leaves(root: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, sentence) of the options below a dataclass, its own before those of its sections."""
    types, texts = get_type_hints(root), sentences(root)
    own = [item for item in fields(root) if not is_dataclass(types[item.name])]
    for item in own:
        kind = types[item.name]
        name = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
        yield prefix + item.name, name, default_of(item), texts.get(item.name, "")
    for item in fields(root):
        if item not in own:
            yield from leaves(types[item.name], f"{prefix}{item.name}.")


def default_of(item: Field[object]) -> str:
    """A field's default as SET= would write it; "(none)" where a value must be given."""
    value = item.default if item.default_factory is NO_DEFAULT else item.default_factory()
    if value == MISSING or value is NO_DEFAULT:
        return "(none)"
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return '""' if value == "" else str(value)


def sentences(root: type) -> dict[str, str]:
    """The string under each field of a dataclass and of those it inherits from, by the field's name."""
    found: dict[str, str] = {}
    for cls in reversed([cls for cls in root.__mro__ if is_dataclass(cls)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for statement, after in pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = after.value if isinstance(after, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[statement.target.id] = " ".join(text.value.split())
    return found


def reference(options: list[Option]) -> str:
    """The options as text: sections in order, the systems named where not all have the option."""
    lines: list[str] = []
    section = None
    for option in options:
        if option.section != section:
            section = option.section
            limited = "" if len(option.systems) == len(SYSTEMS) else f"  (system {', '.join(option.systems)} only)"
            lines += ["", (section or "top level") + limited]
        lines.append(f"  {option.key}={option.default}  ({option.type})")
        lines += textwrap.wrap(option.sentence, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])


def main() -> None:
    print('Options with their defaults; the YAML of an experiment changes some, SET="key=value" changes any.\n')
    print(reference(all_options()))


if __name__ == "__main__":
    main()
