"""The nodes of an ONNX graph in an order in which each comes after what it reads."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence

import onnx


def sorted_nodes(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The same nodes, moved as little as that needs: quantisers append theirs at the end of the file.

    Nodes of a cycle, which no library runs, are left out.
    """
    made_by = {name: index for index, node in enumerate(nodes) for name in node.output}
    missing = [{made_by[name] for name in node.input if name in made_by} for node in nodes]
    readers = defaultdict(list)
    for index, needed in enumerate(missing):
        for maker in needed:
            readers[maker].append(index)
    ready = [index for index, needed in enumerate(missing) if not needed]
    found = []
    while ready:
        index = heapq.heappop(ready)
        found.append(nodes[index])
        for reader in readers[index]:
            missing[reader].discard(index)
            if not missing[reader]:
                heapq.heappush(ready, reader)
    return found
