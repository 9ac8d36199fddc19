"""Rows and tensors that need not fit into memory: on this machine's disk, mapped.

Called by `mljobs.data` for tables, and by `mljobs.examples` for tensors. The system keeps of a mapped file what there is room
for. A file has no name any more once it is mapped, so that its space is free again however the process ends.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from mljobs.failure import JobFailure
from mlplatform.contract import FailureClass

HELD_BYTES: Final = 64 << 20
"""A table or a set of tensors up to this size stays in memory."""
BATCH_ROWS: Final = 1 << 16
"""Rows that are worked on at a time; of wide tables fewer."""
BATCH_BYTES: Final = 16 << 20

Item = TypeVar("Item")

_LIBRARY: Final = ctypes.CDLL(None)


def is_large(table: pa.Table) -> bool:
    """Whether a table is not for memory."""
    return size(table) > HELD_BYTES


def size(table: pa.Table) -> int:
    """Bytes of a table's buffers. Its own `nbytes` looks into text, which for a mapped table reads the disk."""
    return int(table.get_total_buffer_size())


def pieces(table: pa.Table) -> Iterator[pa.Table]:
    """A table in stretches of few rows, one after the other."""
    if not table.num_rows:
        yield table
        return
    rows = max(1, min(BATCH_ROWS, table.num_rows * BATCH_BYTES // max(1, size(table))))
    for batch in _in_turn(table.to_batches(max_chunksize=rows), lambda batch: batch.columns):
        yield pa.Table.from_batches([batch])


def chunks(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """A column's chunks, one after the other."""
    return _in_turn(column.chunks, lambda chunk: [chunk])


def _in_turn(items: Sequence[Item], arrays: Callable[[Item], Iterable[pa.Array]]) -> Iterator[Item]:
    """The items; what the next one has on disk is read meanwhile."""
    for item in items[:1]:
        _fetch(arrays(item))
    for i, item in enumerate(items):
        for following in items[i + 1 : i + 2]:
            _fetch(arrays(following))
        yield item


def _fetch(arrays: Iterable[pa.Array]) -> None:
    """Has the system read what of these is on disk: that and nothing beside it, and all at once."""
    for buffer in itertools.chain.from_iterable(array.buffers() for array in arrays):
        if buffer is not None and buffer.size > mmap.PAGESIZE:
            start = buffer.address // mmap.PAGESIZE * mmap.PAGESIZE
            _LIBRARY.madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(buffer.address + buffer.size - start), mmap.MADV_WILLNEED
            )


def tables(batches: Iterable[pa.RecordBatch]) -> list[pa.Table]:
    """Writes batches to disk as they come; one table for each run of the same schema.

    Raises:
        JobFailure: The disk is full.
    """
    grouped = itertools.groupby(batches, key=lambda batch: batch.schema)
    return [_written(schema, group) for schema, group in grouped]


def _written(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    with tempfile.NamedTemporaryFile(prefix="rows-") as file:
        try:
            with pa.OSFile(file.name, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
        except OSError as error:
            raise _full(error) from error
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Else every page that is touched brings megabytes of other columns along, and a pass over each column reads the whole file.
        mapped.madvise(mmap.MADV_RANDOM)
        return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()


def column(field: pa.Field, chunks: Iterable[pa.Array], *, large: bool) -> pa.ChunkedArray:
    """A column made of chunks: in memory, or on disk if it belongs to a large table."""
    if not large:
        return pa.chunked_array(list(chunks), field.type)
    schema = pa.schema([field])
    found = tables(pa.record_batch([chunk], schema=schema) for chunk in chunks)
    return found[0].column(0) if found else pa.chunked_array([], field.type)


def tensor(shape: tuple[int, ...], dtype: torch.dtype, *, large: bool) -> Tensor:
    """A tensor to be filled: in memory, or on disk.

    Raises:
        JobFailure: The disk is full.
    """
    if not large or not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    size = math.prod(shape)
    with tempfile.NamedTemporaryFile(prefix="tensor-") as file:
        try:
            # All of it is asked for at once: to write to a mapping for which the disk has no room kills the process.
            os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
        except OSError as error:
            raise _full(error) from error
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype).reshape(shape)


def _full(error: OSError) -> JobFailure:
    return JobFailure(
        FailureClass.CRASHED,
        f"the rows could not be written to {tempfile.gettempdir()}: {error}",
        "Give the job more space there (ephemeral storage of the node, or TMPDIR); data that is larger than memory takes "
        "about its decoded size and that of its tensors",
    )


def numbers(array: pa.Array) -> npt.NDArray[np.float64]:
    """A chunk in float64, to be written to; NaN where there is no value."""
    found: npt.NDArray[np.float64] = np.array(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    return found


def chosen(column: pa.ChunkedArray, rows: npt.NDArray[np.int64]) -> Iterator[pa.Array]:
    """A column's values in rows that rise, a stretch at a time."""
    start = 0
    for chunk in chunks(column):
        low, high = np.searchsorted(rows, (start, start + len(chunk)))
        yield chunk.take(as_arrow(rows[low:high] - start))
        start += len(chunk)


def release() -> None:
    """Gives back what Arrow and the C library keep of memory that is free."""
    pa.default_memory_pool().release_unused()
    if hasattr(_LIBRARY, "malloc_trim"):  # glibc's
        _LIBRARY.malloc_trim(0)


def some(table: pa.Table) -> npt.NDArray[np.int64]:
    """Row numbers that rise: all, or of a large table as many as fit, drawn at random but always the same."""
    rows: int = table.num_rows
    if not is_large(table):
        return np.arange(rows)
    return np.sort(np.random.default_rng(rows).choice(rows, max(1, rows * HELD_BYTES // size(table)), replace=False))


def as_arrow(rows: npt.NDArray[np.int64]) -> pa.Array:
    """Row numbers for Arrow. It is given them as memory: to look at an array it would import pandas."""
    return pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)])
