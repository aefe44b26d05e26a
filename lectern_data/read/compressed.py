"""Reads compressed files as streams, and says which endings name files that are not read.

A stream unpacks as it is read, so its memory does not grow with the file. Going back means starting
over. The last stream of a process is kept open, so pieces in order unpack a file only once.
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".lzma": lzma.LZMAFile,
}
# Everything that reading a damaged file may raise.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)

_UNPACK = "compressed in a way that is not read here; unpack it, or compress it with gzip"
_ARCHIVE = "an archive; unpack it, and name the folder"
_TABLE = "a table, not text; convert it to .jsonl or Parquet, one document per row"
_NOT_READ = {
    **dict.fromkeys((".zst", ".zstd", ".lz4", ".br", ".z", ".lzo", ".sz", ".snappy"), _UNPACK),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".csv", ".tsv", ".xls", ".xlsx", ".ods"), _TABLE),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro", ".sqlite", ".db"), _TABLE),
}
_MAGIC = {
    b"PAR1": "a Parquet file; rename it to .parquet",
    b"\x1f\x8b": "a gzip file; rename it to end in .gz",
    b"BZh": "a bzip2 file; rename it to end in .bz2",
    b"\xfd7zXZ\0": "an xz file; rename it to end in .xz",
    b"\x28\xb5\x2f\xfd": _UNPACK,
    b"PK\x03\x04": _ARCHIVE,
}


def suffix_of(path: Path) -> str:
    """Returns the ending that tells the content: ".jsonl" for rows.jsonl and ROWS.JSONL.gz."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _OPENERS else suffix


def is_compressed(path: Path) -> bool:
    """Returns whether `opened` unpacks this file."""
    return path.suffix.lower() in _OPENERS


def why_not_read(path: Path) -> str | None:
    """Returns what a file's ending says it is and what to do, if such files are not read."""
    reason = _NOT_READ.get(path.suffix.lower())
    if reason is None and is_compressed(path):
        reason = _NOT_READ.get(suffix_of(path))
        if suffix_of(path) == ".parquet":
            reason = "a compressed Parquet file; unpack it"
    return reason


def disguised(path: Path) -> str | None:
    """Returns what a file's first bytes say it is, if not its ending; else None. Raises OSError."""
    if is_compressed(path):
        return None
    with path.open("rb") as file:
        start = file.read(8)
    return next((said for magic, said in _MAGIC.items() if start.startswith(magic)), None)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Yields a file's bytes, unpacked; a damaged file raises one of READ_ERRORS, here or later."""
    if not is_compressed(path):
        with path.open("rb") as file:
            yield file
        return
    facts = path.stat()
    stream = _stream(path, facts.st_size, facts.st_mtime_ns)
    try:
        yield stream
    except BaseException:  # its position is unknown
        _stream.cache_clear()
        raise


@lru_cache(maxsize=1)
def _stream(path: Path, *_: Any) -> IO[bytes]:
    """Returns the stream of a file of this size and time; the caller moves it where it needs it."""
    stream: IO[bytes] = _OPENERS[path.suffix.lower()](path)
    return stream
