"""Names for what is added to a graph: none that anything in it, or within its nodes, has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


class Names:
    """The names of all values of a model, and those given out since."""

    def __init__(self, model: ir.Model) -> None:
        """Take the names of inputs, initializers and values, of graphs within nodes, too."""
        graphs = (model.graph, *model.graph.subgraphs())
        self._taken = {name for graph in graphs for name in _names(graph)}

    def fresh(self, wanted: str) -> str:
        """``wanted``, or, where that is taken, the same with the first free number from 2 on."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


def _names(graph: ir.Graph) -> Iterator[str]:
    yield from graph.initializers
    yield from (str(each.name) for each in graph.inputs)
    for node in graph:
        yield from (str(each.name) for each in node.outputs)
