"""Which fields of messages a chat template reads, as far as its source tells."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lectern_data.read.chat_rows import REASONING_FIELDS

if TYPE_CHECKING:
    from jinja2 import nodes

_WHOLE = ("items", "values", "keys")


def message_fields(tree: "nodes.Template") -> frozenset[str] | None:
    """Returns the names of the fields that the template reads; None if it may read all.

    It may do that if it uses a message as a whole, as in `m | tojson`, or if it is not seen which
    of its names is a message. A thought is read under any of its names, because the template gets
    it under each.
    """
    from jinja2 import nodes

    ones = _names_of_one(tree)
    if not ones or any(True for _ in _whole(tree, ones)):
        return None
    names = set[str]()
    for part in tree.find_all(nodes.Getattr):
        if _is_one(part.node, ones):
            names.add(part.attr)
    for item in tree.find_all(nodes.Getitem):
        if _is_one(item.node, ones):
            names |= _texts(item.arg)
    for compared in tree.find_all(nodes.Compare):
        if any(_is_one(operand.expr, ones) for operand in compared.ops):
            names |= _texts(compared.expr)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and _is_one(call.node.node, ones) and call.args:
            names |= _texts(call.args[0])
    if names & set(REASONING_FIELDS):
        names |= set(REASONING_FIELDS)
    return frozenset(names)


def _names_of_one(tree: "nodes.Template") -> set[str]:
    """Returns the names that stand for one message."""
    from jinja2 import nodes

    ones, lists, size = set[str](), {"messages"}, -1
    while size < len(ones) + len(lists):
        size = len(ones) + len(lists)
        for loop in tree.find_all(nodes.For):
            if isinstance(loop.target, nodes.Name) and _is_list(loop.iter, lists):
                ones.add(loop.target.name)
        for put in tree.find_all(nodes.Assign):
            if isinstance(put.target, nodes.Name) and _is_one(put.node, ones):
                ones.add(put.target.name)
            elif isinstance(put.target, nodes.Name) and _is_list(put.node, lists):
                lists.add(put.target.name)
    return ones


def _is_list(node: "nodes.Node | None", lists: set[str]) -> bool:
    """Returns whether an expression is the messages, or some of them."""
    from jinja2 import nodes

    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Slice) and _is_list(node.node, lists)
    if isinstance(node, nodes.Filter):
        return _is_list(node.node, lists)
    return isinstance(node, nodes.Name) and node.name in lists


def _is_one(node: "nodes.Node", ones: set[str]) -> bool:
    """Returns whether an expression is one message; a list of them has a name with `messages`."""
    from jinja2 import nodes

    if isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Name):
        is_key = isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)
        is_slice = isinstance(node.arg, nodes.Slice)
        return "messages" in node.node.name and not is_key and not is_slice
    return isinstance(node, nodes.Name) and node.name in ones


def _whole(tree: "nodes.Template", ones: set[str]) -> "Iterator[nodes.Node]":
    """Yields uses of a message other than as `m.field`, `m["field"]` or `"field" in m`."""
    from jinja2 import nodes

    parts = set[int]()
    for operand in tree.find_all(nodes.Operand):
        parts.add(id(operand.expr))
    for put in tree.find_all(nodes.Assign):
        parts.add(id(put.node))
    parts |= {id(part.node) for part in tree.find_all(nodes.Getattr) if part.attr not in _WHOLE}
    parts |= {
        id(item.node) for item in tree.find_all(nodes.Getitem) if isinstance(item.arg, nodes.Const)
    }
    for name in tree.find_all(nodes.Name):
        if name.ctx == "load" and id(name) not in parts and _is_one(name, ones):
            yield name
    for item in tree.find_all(nodes.Getitem):
        if id(item) not in parts and _is_one(item, ones):
            yield item
    for call in tree.find_all(nodes.Filter):
        if call.name != "length" and _is_list(call.node, {"messages"}):
            yield call


def _texts(node: "nodes.Node") -> set[str]:
    from jinja2 import nodes

    return {str(node.value)} if isinstance(node, nodes.Const) else set()
