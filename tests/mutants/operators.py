"""The ways one thing in a module is broken: a source gives mutants, each the whole source with one change."""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip

_CHANGED_ITSELF = (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant)  # conditions that have mutants of their own


@dataclass(frozen=True)
class Mutant:
    """One change: where, what it says, and the whole source with it."""

    path: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: `{self.before}` -> `{self.after}`"


@dataclass(frozen=True)
class _Change:
    """A change that can be made to a node of a copy of the tree; `shown` is the node to print before and after."""

    line: int
    shown: ast.AST
    make: Callable[[ast.AST], None]


def mutants(path: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a module, from its first line to its last."""
    tree = ast.parse(source)
    for number, node in enumerate(_places(tree)):
        for variant, change in enumerate(_changes(node)):
            twin_tree = copy.deepcopy(tree)
            twin = _places(twin_tree)[number]
            list(_changes(twin))[variant].make(twin)
            ast.fix_missing_locations(twin_tree)
            before, after = _line(change.shown), _line(twin)
            if before != after:
                yield Mutant(path, change.line, before, after, ast.unparse(twin_tree))


def _places(tree: ast.Module) -> list[ast.AST]:
    """Nodes that may change: no annotations, docstrings, decorators, message texts, or what only type checkers see."""
    found: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        found.append(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(tree)
    return found


def _changes(node: ast.AST) -> Iterator[_Change]:
    line = getattr(node, "lineno", 0)

    def change(make: Callable[[ast.AST], None]) -> _Change:
        return _Change(line, node, make)

    match node:
        case ast.Compare():
            for index, operator in enumerate(node.ops):
                yield change(lambda twin, i=index, to=COMPARISONS[type(operator)]: twin.ops.__setitem__(i, to()))
        case ast.BoolOp():
            other = ast.Or if isinstance(node.op, ast.And) else ast.And
            yield change(lambda twin: setattr(twin, "op", other()))
        case ast.UnaryOp(op=ast.Not()):
            yield change(lambda twin: setattr(twin, "op", ast.UAdd()) or _become(twin, twin.operand))
        case ast.BinOp() if type(node.op) in ARITHMETIC and not _is_text(node):
            yield change(lambda twin, to=ARITHMETIC[type(node.op)]: setattr(twin, "op", to()))
        case ast.Constant(value=bool(value)):
            yield change(lambda twin: setattr(twin, "value", not value))
        case ast.Constant(value=int(value) | float(value)):
            yield change(lambda twin: setattr(twin, "value", value + 1))
        case ast.If() | ast.IfExp() | ast.While() if not isinstance(node.test, _CHANGED_ITSELF):
            yield change(lambda twin: setattr(twin, "test", ast.UnaryOp(ast.Not(), twin.test)))
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield change(lambda twin: setattr(twin, "value", ast.Constant(None)))
        case ast.Raise() | ast.AugAssign():
            yield change(lambda twin: _become(twin, ast.Pass()))
        case ast.Expr(value=ast.Call()):
            yield change(lambda twin: _become(twin, ast.Pass()))
        case ast.Break():
            yield change(lambda twin: _become(twin, ast.Continue()))
        case ast.Continue():
            yield change(lambda twin: _become(twin, ast.Break()))
        case ast.ExceptHandler() if not isinstance(node.body[0], ast.Pass | ast.Raise):
            yield change(lambda twin: setattr(twin, "body", [ast.Pass()]))


def _become(node: ast.AST, other: ast.AST) -> None:
    """Turn a node into another one where it stands."""
    place = {name: getattr(node, name) for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")}
    node.__class__ = type(other)  # type: ignore[assignment]
    node.__dict__.clear()
    node.__dict__.update(place | other.__dict__)


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in (node.left, node.right)
    )


def _line(node: ast.AST) -> str:
    """A node as one short line; of a statement with a body its head."""
    text = ast.unparse(node)
    head, *rest = text.splitlines()
    if isinstance(node, ast.ExceptHandler) and rest:
        head += f" {rest[0].strip()}"
    return head if len(head) <= 110 else head[:107] + "..."
