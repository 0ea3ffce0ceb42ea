"""A parsed template, checked and rewritten so that it pays for what it does.

jinja2 compiles templates to Python, and Python counts nothing. So before the compiler sees it, each loop and
macro gets a payment at the head of its body, and each value passes a filter that pays for it before it is
printed, joined, compared, sliced or made a key. The filters' names begin with "@", which no template can
write. Refuses to know what anything costs (filters.py) and how templates run (program.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from llm.chat.sandbox.meter import CHARS_PER_UNIT

MAX_NODES = 10_000
MAX_NESTING = 100
_REFUSED: dict[type[nodes.Node], str] = {
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from ... import",
    nodes.Extends: "extends",
    nodes.Block: "block",
    nodes.Scope: "autoescape",
}
_STATEMENTS = (
    *(nodes.Template, nodes.Output, nodes.For, nodes.If, nodes.Macro, nodes.CallBlock, nodes.FilterBlock),
    *(nodes.With, nodes.Assign, nodes.AssignBlock, nodes.Continue, nodes.Break),
)


class TemplateFailure(Exception):
    """A template cannot be compiled or did not finish. The text is one line.

    Attributes:
        overrun: it would not have ended within its budget.
        refusal: it said itself why, with raise_exception.
    """

    def __init__(self, reason: str, *, overrun: bool = False, refusal: bool = False) -> None:
        super().__init__(reason)
        self.overrun = overrun
        self.refusal = refusal


def check(tree: nodes.Template) -> None:
    """Refuse what no chat template needs, and what is too large to compile."""
    level: list[nodes.Node] = [tree]
    num_nodes, depth = 0, 0
    while level:
        num_nodes, depth = num_nodes + len(level), depth + 1
        if num_nodes > MAX_NODES:
            raise TemplateFailure(f"more than {MAX_NODES:,} expressions and statements")
        if depth > MAX_NESTING:
            raise TemplateFailure(f"nested more than {MAX_NESTING} deep")
        for node in level:
            _check_node(node)
        level = [child for node in level for child in node.iter_child_nodes()]


def _check_node(node: nodes.Node) -> None:
    where = f"line {node.lineno}: " if node.lineno else ""
    if not isinstance(node, (*_STATEMENTS, nodes.Expr, nodes.Helper)):
        name = _REFUSED.get(type(node), type(node).__name__)
        raise TemplateFailure(f"{where}{{% {name} %}} is not for chat templates")
    if isinstance(node, nodes.For) and node.recursive:
        raise TemplateFailure(f"{where}recursive loops are not for chat templates")
    if isinstance(node, nodes.Call | nodes.Filter | nodes.Test) and (node.dyn_args or node.dyn_kwargs):
        raise TemplateFailure(f"{where}* and ** in a call are not for chat templates")
    if isinstance(node, nodes.Const) and isinstance(node.value, float) and not math.isfinite(node.value):
        raise TemplateFailure(f"{where}a number is too large")


def _filtered(node: nodes.Expr, name: str, *args: int) -> nodes.Filter:
    """`node|name(args)`, for one of the sandbox's own filters."""
    constants: list[nodes.Expr] = [nodes.Const(arg) for arg in args]
    made = nodes.Filter(node, name, constants, [], None, None)
    made.set_lineno(node.lineno)
    return made


def _paid(body: list[nodes.Node]) -> list[nodes.Node]:
    """The statements, after a payment for one pass over them."""
    tick = nodes.ExprStmt(_filtered(nodes.Const(_cost(body)), "@tick"))
    return [tick, *body]


def _cost(body: Iterable[nodes.Node]) -> int:
    """Units of one pass: nodes, and text. What an inner loop or macro repeats pays for itself."""
    units, todo = 0, list(body)
    while todo:
        node = todo.pop()
        units += 1 + (len(node.data) // CHARS_PER_UNIT if isinstance(node, nodes.TemplateData) else 0)
        repeated = ("body",) if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock) else ()
        todo += node.iter_child_nodes(exclude=repeated)
    return units


class Rewriter(NodeTransformer):
    """Puts the payments into a parsed template."""

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [n if isinstance(n, nodes.TemplateData) else _filtered(n, "@text") for n in node.nodes]
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        test = 1 + _cost([node.test] if node.test is not None else [])
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _filtered(node.iter, "@each", test)
        node.body = _paid(node.body)
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body = _paid(node.body)
        return node

    visit_CallBlock = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes), "@concat")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _weighed(node.expr)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _weighed(node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "@sized") if isinstance(node.arg, nodes.Slice) else node


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(node, "@weigh")
