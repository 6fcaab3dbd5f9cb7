"""The sizes that an engine is built for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .errors import UsageError
from .spec import Array, GraphSpec, TensorSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """For each free dimension of a graph's inputs: the least size, the one to be fastest at, the largest."""

    sizes: tuple[tuple[str, tuple[int, int, int]], ...]

    @classmethod
    def of(cls, sizes: Mapping[str, int | tuple[int, int, int]]) -> Profile:
        """From sizes by name; a single number stands for all three.

        Raises:
            UsageError: a size is below one, or they do not rise.
        """
        triples = {name: (size, size, size) if isinstance(size, int) else size for name, size in sizes.items()}
        for name, (least, best, most) in triples.items():
            if not 1 <= least <= best <= most:
                raise UsageError(f"{name}: sizes {least}, {best}, {most}; they must rise, from 1")
        return cls(tuple(sorted(triples.items())))

    @property
    def is_static(self) -> bool:
        """Whether one set of shapes is all that it allows."""
        return all(least == most for _, (least, _, most) in self.sizes)

    def shapes(self, tensor: TensorSpec) -> tuple[Shape, Shape, Shape]:
        """Least, best and largest shape of an input of the graph."""
        least, best, most = (
            replace(tensor, shape=tuple(sizes.get(d, d) if isinstance(d, str) else d for d in tensor.shape)).fixed(
                sizes
            )
            for sizes in ({name: triple[k] for name, triple in self.sizes} for k in range(3))
        )
        return _numbers(least), _numbers(best), _numbers(most)

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """Whether an engine of this profile takes inputs of these `sizes`, see `sizes_of`."""
        return all(least <= sizes[name] <= most for name, (least, _, most) in self.sizes)

    def to_record(self) -> dict[str, list[int]]:
        """As JSON has it."""
        return {name: list(sizes) for name, sizes in self.sizes}

    @classmethod
    def from_record(cls, record: Mapping[str, list[int]]) -> Profile:
        """The way back; AttributeError, TypeError or ValueError where it is none."""
        return cls.of({name: (least, best, most) for name, (least, best, most) in record.items()})

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {least}" if least == most else f"{name} {least}-{most} (best {best})"
            for name, (least, best, most) in self.sizes
        )


def _numbers(tensor: TensorSpec) -> Shape:
    return tuple(d for d in tensor.shape if isinstance(d, int))


def sizes_of(spec: GraphSpec, feeds: Mapping[str, Array]) -> dict[str, int]:
    """The size of each free dimension in arrays that fit `spec`."""
    return {
        dimension: size
        for tensor in spec.inputs
        for dimension, size in zip(tensor.shape, feeds[tensor.name].shape, strict=True)
        if isinstance(dimension, str)
    }
