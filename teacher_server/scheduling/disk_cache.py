"""Keeps computed rows in files, so that an epoch's worth outlives memory and the process.

    FOLDER/<model>/<2 hex>/<62 hex>     <model> hashes fingerprint, mode, device and arithmetic

A file is a header (magic, CRC-32, sizes), the row lengths of sampled rows, and the rows. It appears
whole, by rename; one that cannot be read or whose checksum differs is deleted and counts as absent.
Writing never delays an answer: rows that come faster than the disk can take are not written.
"""

import contextlib
import os
import struct
import threading
import zlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lectern_common.errors import Misconfigured
from lectern_common.files import replaced_file, take_lock
from lectern_common.logs import get_logger
from teacher_server.engine.seam import ComputedRows

log = get_logger()

_HEADER = struct.Struct("<8sIIQ")  # magic, crc32, row lengths, payload bytes
_MAGIC = b"LECROWS1"
_MAX_UNWRITTEN_BYTES = 256 << 20


class DiskCache:
    """Files of rows, at most `capacity_bytes` in all; the least recently used go first.

    Args:
        folder: only for this model; created if it is missing.
        capacity_bytes: over all files.

    Raises:
        Misconfigured: the folder cannot be created or written, or another process uses it.
    """

    def __init__(self, folder: Path, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.not_written = 0
        # Reads and writes, one at a time, off the event loop.
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache")
        self._folder = folder
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._unwritten_bytes = 0
        self._lock = threading.Lock()  # the loop reads what the thread changes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_descriptor = take_lock(folder / ".lock")
            self._find_files()
        except BlockingIOError:
            raise Misconfigured(
                f"another teacher uses the cache folder {folder}; set another --cache-folder"
            ) from None
        except OSError as error:
            raise Misconfigured(
                f"cannot use the cache folder {folder}: {error.strerror}; set another "
                "--cache-folder, or leave it out"
            ) from None

    def __contains__(self, key: bytes) -> bool:
        with self._lock:
            return key in self._sizes

    def __len__(self) -> int:
        with self._lock:
            return len(self._sizes)

    def close(self) -> None:
        """Writes what is waiting, then ends the thread."""
        self.thread.shutdown(wait=True)
        os.close(self._lock_descriptor)

    def write_soon(self, key: bytes, rows: ComputedRows) -> None:
        """Queues rows for writing, unless the disk has fallen far behind."""
        with self._lock:
            if key in self._sizes or _HEADER.size + rows.num_bytes > self.capacity_bytes:
                return
            if self._unwritten_bytes + rows.num_bytes > _MAX_UNWRITTEN_BYTES:
                self.not_written += 1
                return
            self._unwritten_bytes += rows.num_bytes
        self.thread.submit(self._write, key, rows)

    def read(self, key: bytes) -> ComputedRows | None:
        """Returns the rows of a key, or None. Runs on the cache's thread."""
        path = self._path(key)
        try:
            rows = _unpacked(np.fromfile(path, np.uint8))
            os.utime(path)
        except Exception as error:  # whatever failed, the rows can be computed
            log.warning("cached rows are unreadable", path=str(path), error=str(error))
            if isinstance(error, FileNotFoundError | ValueError):  # a retry would fail too
                self._drop(key)
            return None
        with self._lock:
            if key in self._sizes:
                self._sizes.move_to_end(key)
        return rows

    def _write(self, key: bytes, rows: ComputedRows) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            # Not fsynced: the checksum detects an incomplete file.
            with replaced_file(path, durable=False) as hidden, hidden.open("wb") as file:
                for part in _packed(rows):
                    file.write(part)
                size = file.tell()
        except OSError as error:
            log.warning("rows not cached", path=str(path), error=str(error))
            size = 0
        with self._lock:
            self._unwritten_bytes -= rows.num_bytes
            if size and key not in self._sizes:
                self._sizes[key] = size
                self.used_bytes += size
        while self.used_bytes > self.capacity_bytes:
            self._drop(next(iter(self._sizes)))

    def _drop(self, key: bytes) -> None:
        with self._lock:
            self.used_bytes -= self._sizes.pop(key, 0)
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def _find_files(self) -> None:
        """Takes over the files of an earlier process, least recently used first."""
        found = []
        for path in self._folder.glob("*/*"):
            name = path.parent.name + path.name
            if path.name.startswith("."):
                path.unlink()  # half written
            elif len(name) == 64 and set(name) <= set("0123456789abcdef"):
                stat = path.stat()
                found.append((stat.st_mtime_ns, bytes.fromhex(name), stat.st_size))
        for _, key, size in sorted(found):
            self._sizes[key] = size
            self.used_bytes += size
        while self.used_bytes > self.capacity_bytes:
            self._drop(next(iter(self._sizes)))

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self._folder / name[:2] / name[2:]


def _packed(rows: ComputedRows) -> list[bytes | memoryview]:
    lengths = rows.row_lengths
    sizes = b"" if lengths is None else lengths.astype("<u4").tobytes()
    crc = zlib.crc32(rows.payload, zlib.crc32(sizes))
    return [_HEADER.pack(_MAGIC, crc, len(sizes) // 4, len(rows.payload)), sizes, rows.payload]


def _unpacked(data: np.ndarray) -> ComputedRows:
    """Returns the rows of a file. Raises ValueError unless it is a complete cache file."""
    if len(data) < _HEADER.size:
        raise ValueError("it is truncated")
    magic, crc, num_lengths, num_bytes = _HEADER.unpack(data[: _HEADER.size].tobytes())
    start = _HEADER.size + 4 * num_lengths
    if magic != _MAGIC or len(data) != start + num_bytes:
        raise ValueError("it is truncated or not a cache file")
    if zlib.crc32(data[_HEADER.size :].data) != crc:
        raise ValueError("its checksum differs")
    lengths = data[_HEADER.size : start].view("<u4").astype(np.uint32) if num_lengths else None
    return ComputedRows(data[start:].data, lengths)
