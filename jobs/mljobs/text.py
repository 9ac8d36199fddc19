"""The bytes of a text file as UTF-8: unpacked, and read in the encoding that they are in.

Called by `mljobs.tables` for every CSV file, and by `mljobs.stream` for those that are not for memory. Bytes are never taken for text: an encoding is told by the bytes, said by
`spec.data.encoding`, or refused.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import pyarrow as pa

from mljobs.failure import JobFailure
from mlplatform.contract import FailureClass

COMPRESSIONS: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
"""First bytes of a packed file."""
FOREIGN: Final = (
    (b"PK\x03\x04", "a ZIP archive, as an Excel workbook is one", "Unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "Save the sheet as CSV"),
    (b"PAR1\x15", "a Parquet file", "Set spec.data.format to parquet"),
    (b"ARROW1\0\0", "an Arrow file", "Write the rows as Parquet"),
    (b"Obj\x01", "an Avro file", "Write the rows as Parquet"),
    (b"\x89HDF", "an HDF5 file", "Write the rows as Parquet"),
    (b"SQLite format 3\0", "an SQLite database", "Write the rows as Parquet"),
    (b"\xfd7zXZ", "packed with xz", "Unpack it: of packed files gzip, zstd and bzip2 are read"),
    (b"7z\xbc\xaf", "packed with 7-Zip", "Unpack it: of packed files gzip, zstd and bzip2 are read"),
    (b"%PDF", "a PDF document", "Write the rows as CSV"),
    (
        b"version https://git-lfs.",
        "a pointer of Git LFS and not the file",
        "Fetch the file itself (git lfs pull) and write it there",
    ),
    (
        b"<!doctype html",
        "a web page",
        "Look what it says: the download may have been refused; then write the file again",
    ),
    (b"<html", "a web page", "Look what it says: the download may have been refused; then write the file again"),
    (b"<?xml", "an XML document", "Look what it says: a store's refusal is one, too; then write the file again"),
)
"""First bytes of what is no text of rows, in small letters where it has letters; with what it is, and what to do."""

MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks; UTF-32's begins like UTF-16's."""

SCRIPTS: Final = ("cp1251", "koi8_r", "cp1253", "cp1255", "cp1256", "shift_jis", "euc_jp", "gb18030", "big5", "euc_kr")
"""Encodings of other than Latin letters, which a guess tells well from each other."""

WESTERN: Final = "cp1252"
"""Latin-1 and what Windows adds to it: what is neither UTF-8 nor of another script mostly is."""

GUESS_BYTES: Final = 1 << 16
EVIDENCE_BYTES: Final = 8 << 20
LOOK_BYTES: Final = 4096
RARE: Final = 64
"""Of so many bytes one is a zero at least, also of a text without Latin letters: it has line ends and delimiters."""
ONE_SIDED: Final = 4
"""How many times as many zeros are on one side of UTF-16: some other letters have theirs on the other one."""
CHAOS_LIMIT: Final = 0.1
COHERENCE_LIMIT: Final = 0.2
COHERENCE_LEAD: Final = 1.5

_MULTIBYTE: Final = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH: Final = re.compile(rb"[\x80-\xff]")
_STRANGE: Final = re.compile(
    # What Windows' Western alphabet makes of Central European, Turkish and older computers' letters: a sign or a capital
    # in the midst of a word, money before one, letters of Icelandic alone, and of other scripts whole words of accents.
    r"[^\W\d_][¡-©«-±³-\xb8»-¿\xd7÷†‡‰•\u2013—\u02dc™\u201a“”„…][^\W\d_]"
    r"|(?<![^\W_])[£¥¦§¨©¬®¯±³¶¹¼½¾\xd7÷†‡‰][a-zß-öø-ÿ]"
    r"|[^\W\d_][À-ÖØ-ÞŒŠŽŸ][a-zß-öø-ÿ]"
    r"|[ÐÝÞðýþ]|[À-ÖØ-öø-ÿ]{3}"
)


class Text(NamedTuple):
    """A file's text.

    Attributes:
        content: UTF-8 without a byte order mark.
        encoding: What it was in.
    """

    content: bytes
    encoding: str


def unpacked(content: bytes, uri: str) -> bytes:
    """The content of a gzip, zstd or bzip2 file, which its first bytes tell; any other as it is.

    Raises:
        JobFailure: It is damaged or breaks off.
    """
    name = next((name for start, name in COMPRESSIONS.items() if content.startswith(start)), None)
    if name is None:
        return content
    try:
        with pa.input_stream(pa.BufferReader(content), compression=name) as stream:
            return bytes(stream.read())
    except OSError as error:  # Arrow's own errors are of this kind, too
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{uri} cannot be unpacked as {name}: {error}",
            "Write the file again: it is damaged, or its upload broke off",
        ) from error


def refuse_foreign(start: bytes, uri: str) -> None:
    """Refuses by name what was meant to be something else, however it is called.

    Raises:
        JobFailure: It is.
    """
    begin = start[:LOOK_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()
    for mark, what, advice in FOREIGN:
        if begin.startswith(mark) or begin[: len(mark)].lower() == mark:
            raise JobFailure(FailureClass.DATA_INVALID, f"{uri} is {what}", advice)


def read(content: bytes, encoding: str, uri: str) -> Text:
    """`content` as UTF-8.

    Args:
        content: Unpacked.
        encoding: `spec.data.encoding`; where it is empty, the bytes tell.
        uri: Of the file, for messages.

    Raises:
        JobFailure: The encoding is unknown (SpecInvalid), is not that of the file, or cannot be told (DataInvalid).
    """
    if name := begun(content, encoding):
        return _decoded(content, name, uri, said=bool(encoding))
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return _decoded(content, _told(content, error.start, uri), uri)
    return Text(content, "utf-8")


def begun(start: bytes, encoding: str) -> str:
    """The encoding that is said, or that the first bytes of a file show; empty where all of them must be looked at.

    Raises:
        JobFailure: What is said is no encoding.
    """
    if encoding:
        return _known(encoding)
    for mark, name in MARKS:
        if start.startswith(mark):
            return name
    # ASCII in UTF-16 has a zero beside each letter, always on the same side; UTF-8 would take it.
    look = start[:LOOK_BYTES]
    before, behind = look[::2].count(0), look[1::2].count(0)
    if max(before, behind) > max(len(look) // RARE, ONE_SIDED * min(before, behind)):
        return "utf-16-le" if behind > before else "utf-16-be"
    return ""


class NotUtf8Error(ValueError):
    """A file is not UTF-8, as it was taken to be."""


class Decoder:
    """Turns a file into UTF-8 piece by piece.

    Args:
        encoding: That `begun` or `told` found; empty for UTF-8 that nothing has said.
        uri: Of the file, for messages.
        said: Whether `spec.data.encoding` says it.
    """

    def __init__(self, encoding: str, uri: str, *, said: bool) -> None:
        self._uri, self._said, self._guessed = uri, said, not encoding
        self._name = encoding or "utf-8"
        self._decoder = codecs.getincrementaldecoder(self._name)()
        self._is_utf8 = codecs.lookup(self._name).name == "utf-8"
        self._line, self._begun = 1, False

    def feed(self, piece: bytes, *, last: bool) -> bytes:
        """The piece as UTF-8 without a byte order mark; what does not end with a character waits for the next one.

        Raises:
            NotUtf8Error: Nothing has said that it should be.
            JobFailure: It is not in the encoding.
        """
        waiting = self._decoder.getstate()[0]
        if self._is_utf8 and self._begun and not waiting and piece.isascii():
            self._line += 0 if self._guessed else piece.count(b"\n")
            return piece
        try:
            text = self._decoder.decode(piece, final=last)
        except UnicodeDecodeError as error:
            if self._guessed:
                raise NotUtf8Error from error
            raise _undecodable(error, self._line, self._name, self._uri, said=self._said) from error
        self._line += 0 if self._guessed else text.count("\n")  # only the error of a known encoding tells it
        if not self._begun:
            text, self._begun = text.removeprefix("\ufeff"), True
        return text.encode()


def told(pieces: Iterable[bytes], uri: str) -> str:
    """The encoding of a file that is not UTF-8, from the lines that are no ASCII, as far as `EVIDENCE_BYTES` go.

    Raises:
        JobFailure: It cannot be told.
    """
    lines, size, rest = [], 0, b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        strange = [line for line in whole if not line.isascii()]
        lines += strange
        size += sum(map(len, strange))
        if size > EVIDENCE_BYTES:
            break
    evidence = b"\n".join([*lines, rest])
    try:
        evidence.decode()
    except UnicodeDecodeError as error:
        return _told(evidence, error.start, uri)
    return WESTERN


def _known(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)
    except LookupError as error:  # also of a codec that is none of text
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            f"spec.data.encoding {encoding!r} is no encoding of text",
            "Use a name that Python knows: utf-8, windows-1252, latin-1, utf-16, shift_jis",
        ) from error
    return name


def _decoded(content: bytes, encoding: str, uri: str, *, said: bool = False) -> Text:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise _undecodable(error, 1, encoding, uri, said=said) from error
    return Text(text.removeprefix("\ufeff").encode(), encoding)


def _undecodable(error: UnicodeDecodeError, line: int, encoding: str, uri: str, *, said: bool) -> JobFailure:
    what = f"spec.data.encoding says {encoding}" if said else f"it looks like {encoding}"
    line += error.object.count(b"\n", 0, error.start)
    return JobFailure(
        FailureClass.DATA_INVALID,
        f"{uri}: {what}, which byte {error.object[error.start]:#04x} in line {line} is not",
        "Correct the file, or let spec.data.encoding name the encoding it is in",
    )


def _line(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


def _told(content: bytes, position: int, uri: str) -> str:
    """The encoding of a file that is not UTF-8 from `position` on.

    Raises:
        JobFailure: It cannot be told.
    """
    inside = sum(len(found) for found in _MULTIBYTE.findall(content))
    if inside * 2 > len(_HIGH.findall(content)):
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{uri} is UTF-8, but byte {content[position]:#04x} in line {_line(content, position)} is not",
            "Correct the line, or let spec.data.encoding name the encoding of all lines",
        )
    lines = b"\n".join(line for line in content.splitlines() if not line.isascii())[:GUESS_BYTES]
    if script := _script(lines):
        return script
    if strange := _strange(content):
        what, at = strange
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the encoding of {uri} cannot be told: it is no UTF-8, and as {WESTERN} line {_line(content, at)} would hold {what}",
            "Let spec.data.encoding name it (windows-1250, iso8859-2, mac-roman, shift_jis, …), or write the file as UTF-8",
        )
    return WESTERN


def _strange(content: bytes) -> tuple[str, int] | None:
    """What no Western text has, and where; each byte is a character there."""
    try:
        western = content.decode(WESTERN)
    except UnicodeDecodeError as error:
        return f"byte {content[error.start]:#04x}, which is no character there", error.start
    found = _STRANGE.search(western)
    return (repr(found[0]), found.start()) if found else None


def _script(lines: bytes) -> str:
    """The encoding of a script other than Latin that these lines are in, if they are in one."""
    from charset_normalizer import from_bytes  # noqa: PLC0415  only for what is not UTF-8

    found = [match for match in from_bytes(lines, cp_isolation=[*SCRIPTS, WESTERN]) if match.chaos < CHAOS_LIMIT]
    best = max(found, key=lambda match: match.coherence, default=None)
    # Letters of one alphabet are letters of another one, too: only a clear lead tells them apart.
    rest = max((match.coherence for match in found if match is not best), default=0.0)
    if best and best.encoding in SCRIPTS and best.coherence >= max(COHERENCE_LIMIT, COHERENCE_LEAD * rest):
        return best.encoding
    return ""
