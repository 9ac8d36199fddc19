"""A file's bytes as they come: counted into the digest, unpacked, as UTF-8, in blocks that end where a row ends.

Called by `mljobs.tables`. Nothing here holds more than a few blocks of a file.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from mljobs.cpu import cpu_limit
from mljobs.failure import JobFailure
from mljobs.store import Store, translated
from mljobs.text import COMPRESSIONS, Decoder
from mlplatform.contract import FailureClass

BLOCK_BYTES: Final = 16 << 20
"""Read at a time. A file up to this size, unpacked, is read whole."""
LONGEST: Final = 8
"""Blocks without the end of a row after which quotes are not what they seem."""
WORKERS: Final = 4
"""Threads at most that parse blocks: what each makes of one takes 60 MiB."""

COUNTED_BYTES: Final = 1 << 18
"""What a core's cache holds twice."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Digest(Protocol):
    """One of hashlib's."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Takes in more bytes."""

    def copy(self) -> Digest:
        """Another one that has taken in the same."""

    def hexdigest(self) -> str:
        """Of all bytes so far."""


class RowEndsError(ValueError):
    """Where rows end cannot be told by counting quotes."""


class Source:
    """One file of the data.

    Args:
        store: Where it lies.
        name: There.
        before: The digest of the files before it.

    Attributes:
        digest: With all bytes of this file, once it has been read and `finish` was called.
        uri: For messages.
        local: Its path, if it is on this machine.
    """

    def __init__(self, store: Store, name: str, before: Digest) -> None:
        self._store, self._name, self._before = store, name, before
        self._opened: _Counted | None = None
        self.digest = before
        self.uri, self.local = store.uri(name), store.local(name)

    @contextmanager
    def open(self) -> Iterator[io.BufferedReader]:
        """The file from its beginning."""
        self.digest = self._before.copy()
        with self._store.open(self._name) as file:
            self._opened = _Counted(file, self.digest, self.uri)
            yield io.BufferedReader(self._opened, buffer_size=1 << 20)

    def finish(self) -> None:
        """Reads what is left of the open file: the digest is over all of it."""
        if self._opened:
            self._opened.drain()


class _Counted(io.RawIOBase):
    """Passes a file's bytes on and counts them into a digest."""

    def __init__(self, file: io.BufferedIOBase, digest: Digest, uri: str) -> None:
        self._file, self._digest, self._uri = file, digest, uri

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        with translated("read", self._uri):
            size = self._file.readinto(buffer)
        self._digest.update(memoryview(buffer)[:size])
        return size

    def drain(self) -> None:
        """Counts what nobody has asked for."""
        buffer = bytearray(1 << 20)
        while self.readinto(buffer):
            continue


@contextmanager
def unpacked(file: io.BufferedReader, uri: str) -> Iterator[io.BufferedReader]:
    """The content of a gzip, zstd or bzip2 file, which its first bytes tell; any other as it is.

    Raises:
        JobFailure: It is damaged or breaks off.
    """
    start = file.peek(4)[:4]
    name = next((name for mark, name in COMPRESSIONS.items() if start.startswith(mark)), None)
    if name is None:
        yield file
        return
    with pa.CompressedInputStream(pa.PythonFile(file, "r"), name) as content:
        yield io.BufferedReader(Unpacked(content, name, uri), buffer_size=1 << 20)


class Unpacked(io.RawIOBase):
    """Arrow's stream, with its errors in words."""

    def __init__(self, content: pa.NativeFile, name: str, uri: str) -> None:
        self._content, self._name, self._uri = content, name, uri

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """As of any raw stream."""
        try:
            piece = self._content.read(len(buffer))
        except OSError as error:  # Arrow's own errors are of this kind, too
            raise damaged(self._uri, self._name, error) from error
        buffer[: len(piece)] = piece
        return len(piece)


def damaged(uri: str, packed: str, error: Exception) -> JobFailure:
    """A packed file cannot be read to its end."""
    return JobFailure(
        FailureClass.DATA_INVALID,
        f"{uri} cannot be unpacked as {packed}: {error}",
        "Write the file again: it is damaged, or its upload broke off",
    )


def pieces(file: io.BufferedIOBase) -> Iterator[bytes]:
    """A file in pieces of `BLOCK_BYTES`."""
    while piece := file.read(BLOCK_BYTES):
        yield piece


def decoded(parts: Iterator[bytes], decoder: Decoder) -> Iterator[bytes]:
    """A CSV file as UTF-8, in blocks that end anywhere."""
    piece = next(parts, b"")
    while piece:
        following = next(parts, b"")
        yield decoder.feed(piece, last=not following)
        piece = following


class Joined(io.RawIOBase):
    """Blocks as one file.

    Args:
        parts: The blocks.

    Attributes:
        last: The one read last.
        quotes: In those before it.
    """

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._rest = parts, b""
        self.last, self.quotes = b"", 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """As of any raw stream."""
        while not self._rest:
            if (part := next(self._parts, None)) is None:
                return 0
            self.quotes += quotes(self.last)
            self._rest = self.last = part
        piece, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


def blocks(parts: Iterator[bytes], decoder: Decoder, end_of: Callable[[bytes, bytes], int]) -> Iterator[bytes]:
    """A file as UTF-8, each block with whole rows, which `end_of` tells: `row_end` or `line_end`.

    Raises:
        RowEndsError: By its quotes a row would be longer than `LONGEST` blocks.
    """
    rest, piece = b"", next(parts, b"")
    while piece:
        following = next(parts, b"")
        read = decoder.feed(piece, last=not following)
        end = end_of(rest, read) if following else len(read)
        # Copied once: a block is large.
        if end or not following:
            yield b"".join((rest, memoryview(read)[:end]))
        rest, piece = read[end:] if end else rest + read, following
        if len(rest) > LONGEST * BLOCK_BYTES:
            raise RowEndsError


def line_end(_rest: bytes, read: bytes) -> int:
    """Behind the last end of a line; 0 if there is none."""
    return read.rfind(b"\n") + 1


def row_end(rest: bytes, read: bytes) -> int:
    """Behind the last end of a row of CSV in what was read; 0 if there is none.

    A line break between quotes ends no row.

    Args:
        rest: What comes before, from where a row begins.
        read: The rest of that row, and more.
    """
    end = read.rfind(b"\n") + 1
    if b'"' not in read and b'"' not in rest:
        return end or read.rfind(b"\r") + 1
    odd = (quotes(rest) + quotes(read, end)) % 2
    while odd and end:
        before = read.rfind(b"\n", 0, end - 1) + 1
        odd ^= read.count(b'"', before, end) % 2
        end = before
    return end


def quotes(text: bytes, end: int | None = None) -> int:
    """How many there are before `end`: as `bytes.count`, which takes ten times as long."""
    found = np.frombuffer(text, dtype=np.uint8)[:end]
    return sum(
        int(np.count_nonzero(found[i : i + COUNTED_BYTES] == ord('"'))) for i in range(0, len(found), COUNTED_BYTES)
    )


def side_by_side(make: Callable[[Item], Result], items: Iterator[Item]) -> Iterator[Result]:
    """What each of the items becomes, in their order. Few are held at a time, and as many are made as there are cores."""
    workers = min(cpu_limit(), WORKERS)
    with ThreadPoolExecutor(workers) as threads:
        under_way: deque[Future[Result]] = deque()
        for item in items:
            under_way.append(threads.submit(make, item))
            if len(under_way) > workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
