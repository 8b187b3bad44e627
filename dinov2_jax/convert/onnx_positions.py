"""The bicubic resize of positions as ONNX nodes, for grids known only when it runs.

ONNX's own Resize takes one sharpness and, for an offset of 0.1, a scale that it rounds
in its own way; here the matrices of `posembed.resize_weights` are computed in the graph
from the number of patches, so that every offset and both kernels are the model's own.
Numbers are float32, as all runtimes have it: weights differ by about 1e-6.
"""

import numpy as np


class Resize:
    """Nodes of one graph, an `onnx.Graph`, that resize its position table."""

    def __init__(
        self, graph, table: np.ndarray, grid: tuple[int, int], model_resize: dict
    ):
        """What is resized.

        Args:
            graph: to add to.
            table: [1 1+rows*columns D], with the cls entry first.
            grid: rows and columns of the table.
            model_resize: `antialias` and `offset` of the model.
        """
        self.graph, self.table, self.grid = graph, table, grid
        self.antialias, self.offset = model_resize["antialias"], model_resize["offset"]

    def patches(self, rows: str, columns: str) -> str:
        """[1 rows*columns D] positions of a grid, from numbers of shape [1]."""
        add, (m, n) = self.graph.add, self.grid
        width = self.table.shape[-1]
        same = [self._equal(k, size) for k, size in ((rows, m), (columns, n))]
        if not self.antialias:  # the table itself, where both axes are as they were
            same = [add("And", *same)] * 2
        by_row, by_column = (
            self._matrix(count, size, equal)
            for count, size, equal in zip((rows, columns), self.grid, same)
        )
        entries = self.graph.weight(
            "pos_embed", self.table[:, 1:].reshape(m, n * width)
        )
        x = add("MatMul", by_row, entries)  # [rows n*D]
        x = add("Reshape", x, self.graph.numbers(-1, n, width))
        x = add("MatMul", by_column, x)  # [rows columns D]
        return add("Reshape", x, self.graph.numbers(1, -1, width))

    def _number(self, value: float) -> str:
        """A float32 constant."""
        return self.graph.weight(f"number_{value!r}", np.float32(value))

    def _equal(self, count: str, size: int) -> str:
        """Whether a number of shape [1] is that size."""
        return self.graph.add("Equal", count, self.graph.numbers(size))

    def _matrix(self, count: str, size: int, same: str) -> str:
        """[count size] weights; the identity where `same`."""
        add, number = self.graph.add, self._number
        last = add("Squeeze", count)
        rows = add("Range", self.graph.scalar(0), last, self.graph.scalar(1))
        rows = add("Unsqueeze", rows, self.graph.numbers(1))  # [count 1]
        pixels = self.graph.numbers(*range(size))  # [size]
        identity = add("Cast", add("Equal", rows, pixels), to=1)
        length = add("Cast", count, to=1)
        step = add("Div", number(float(size)), add("Add", length, number(self.offset)))
        center = add("Cast", rows, to=1)
        center = add("Mul", add("Add", center, number(0.5)), step)
        kernel = self._antialiased if self.antialias else self._plain
        return add("Where", same, identity, kernel(center, step, size))

    def _plain(self, center: str, step: str, size: int) -> str:
        """As `posembed._plain_weights`: four taps, whose border value is repeated."""
        add, number = self.graph.add, self._number
        at = add("Sub", center, number(0.5))
        first = add("Floor", at)
        low, high, pixels = number(0.0), number(size - 1.0), self._pixels(size)
        taps = []
        for tap in range(-1, 3):
            column = add("Add", first, number(float(tap)))
            weight = self._cubic(add("Sub", at, column), -0.75)
            column = add("Min", add("Max", column, low), high)
            here = add("Cast", add("Equal", column, pixels), to=1)
            taps.append(add("Mul", weight, here))
        return add("Sum", *taps)

    def _antialiased(self, center: str, step: str, size: int) -> str:
        """As `posembed._antialias_weights`: stretched when shrinking, renormalised.

        The window of PyTorch cuts where the kernel is 0 already.
        """
        add, number = self.graph.add, self._number
        stretch = add("Max", step, number(1.0))
        pixels = add("Add", self._pixels(size), number(0.5))
        x = add("Div", add("Sub", pixels, center), stretch)
        weights = self._cubic(x, -0.5)
        total = add("ReduceSum", weights, self.graph.numbers(1), keepdims=1)
        return add("Div", weights, total)

    def _pixels(self, size: int) -> str:
        """[size] numbers from 0."""
        return self.graph.weight(f"pixels_{size}", np.arange(size))

    def _cubic(self, x: str, a: float) -> str:
        """Keys' kernel of sharpness `a`; 0 from 2 on."""
        add, number = self.graph.add, self._number

        def polynomial(x: str, *factors: float) -> str:
            """Horner's scheme, the highest power first."""
            total = number(factors[0])
            for factor in factors[1:]:
                total = add("Add", add("Mul", total, x), number(factor))
            return total

        x = add("Min", add("Abs", x), number(2.0))
        near = polynomial(x, a + 2, -(a + 3), 0.0, 1.0)
        far = polynomial(x, a, -5 * a, 8 * a, -4 * a)
        return add("Where", add("LessOrEqual", x, number(1.0)), near, far)
