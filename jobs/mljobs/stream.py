"""A file's bytes as they come: counted into the digest, unpacked, as UTF-8, in blocks that end where a row ends.

Called by `mljobs.tables`. Nothing here holds more than a few blocks of a file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, Protocol

import pyarrow as pa

from mljobs.failure import JobFailure
from mljobs.store import Store, translated
from mljobs.text import COMPRESSIONS, Decoder
from mlplatform.contract import FailureClass

BLOCK_BYTES: Final = 16 << 20
"""Read at a time. A file up to this size, unpacked, is read whole."""
LONGEST: Final = 8
"""Blocks without the end of a row after which quotes are not what they seem."""


class Digest(Protocol):
    """One of hashlib's."""

    def update(self, data: bytes, /) -> None:
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
        digest: With all bytes of this file once it has been read to its end.
        uri: For messages.
        local: Its path, if it is on this machine.
    """

    def __init__(self, store: Store, name: str, before: Digest) -> None:
        self._store, self._name, self._before = store, name, before
        self.digest = before
        self.uri, self.local = store.uri(name), store.local(name)

    @contextmanager
    def open(self) -> Iterator[io.BufferedReader]:
        """The file from its beginning; what is left of it is read, too, in the end."""
        self.digest = self._before.copy()
        with self._store.open(self._name) as file:
            counted = _Counted(file, self.digest, self.uri)
            yield io.BufferedReader(counted, buffer_size=1 << 20)
            counted.drain()


class _Counted(io.RawIOBase):
    """Passes a file's bytes on and counts them into a digest."""

    def __init__(self, file: BinaryIO, digest: Digest, uri: str) -> None:
        self._file, self._digest, self._uri = file, digest, uri

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        piece = self._next(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def drain(self) -> None:
        """Counts what nobody has asked for."""
        while self._next(BLOCK_BYTES):
            continue

    def _next(self, size: int) -> bytes:
        with translated("read", self._uri):
            piece = self._file.read(size)
        self._digest.update(piece)
        return piece


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


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """A file in pieces of `BLOCK_BYTES`."""
    while piece := file.read(BLOCK_BYTES):
        yield piece


def decoded(file: BinaryIO, decoder: Decoder) -> Iterator[bytes]:
    """A CSV file as UTF-8, in blocks that end anywhere."""
    piece = file.read(BLOCK_BYTES)
    while piece:
        following = file.read(BLOCK_BYTES)
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
            self.quotes += self.last.count(b'"')
            self._rest = self.last = part
        piece, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


def blocks(file: BinaryIO, decoder: Decoder, end_of: Callable[[bytes], int]) -> Iterator[bytes]:
    """A file as UTF-8, each block with whole rows, which `end_of` tells: `row_end` or `line_end`.

    Raises:
        RowEndsError: By its quotes a row would be longer than `LONGEST` blocks.
    """
    rest, piece = b"", file.read(BLOCK_BYTES)
    while piece:
        following = file.read(BLOCK_BYTES)
        block = rest + decoder.feed(piece, last=not following)
        end = end_of(block) if following else len(block)
        if end:
            yield block[:end]
        rest, piece = block[end:], following
        if len(rest) > LONGEST * BLOCK_BYTES:
            raise RowEndsError


def line_end(block: bytes) -> int:
    """Behind the last end of a line; 0 if there is none."""
    return block.rfind(b"\n") + 1


def row_end(block: bytes) -> int:
    """Behind the last end of a row of CSV in a block that begins with a row; 0 if there is none.

    A line break between quotes ends no row.
    """
    end = block.rfind(b"\n") + 1
    if b'"' not in block:
        return end or block.rfind(b"\r") + 1
    odd = block.count(b'"', 0, end) % 2
    while odd and end:
        before = block.rfind(b"\n", 0, end - 1) + 1
        odd ^= block.count(b'"', before, end) % 2
        end = before
    return end
