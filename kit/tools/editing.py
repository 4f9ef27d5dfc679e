"""Edits Python source at nodes of its `ast`, and leaves the rest unchanged."""

import ast
from collections.abc import Callable, Iterable


def edit_nodes(
    source: str, edits: Iterable[tuple[ast.AST, Callable[[str], str]]]
) -> str:
    """Returns a source in which the text of some nodes is replaced.

    Args:
        source: Python source.
        edits: Pairs of a node of `ast.parse(source)` and a function from the node's
            text to its replacement. Nodes must not contain each other.
    """
    data = source.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(node):  # ast counts bytes
        begin = starts[node.lineno - 1] + node.col_offset
        return begin, starts[node.end_lineno - 1] + node.end_col_offset

    for node, change in sorted(edits, key=lambda x: place(x[0]), reverse=True):
        begin, end = place(node)
        text = change(data[begin:end].decode())
        data = data[:begin] + text.encode() + data[end:]
    return data.decode()
