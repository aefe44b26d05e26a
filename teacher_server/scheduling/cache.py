"""Keeps computed rows for requests of the same sequence, in a bounded number of bytes.

Keyed by the base ask (engine/seam.py), so one entry serves every run, representation, mask and
temperature. The least recently used entries are dropped first. With a second tier on disk
(disk_cache.py) they can be read back from there, even by the next process.
"""

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Sequence

from teacher_server.engine.seam import ComputedRows
from teacher_server.scheduling.disk_cache import DiskCache

# Memory of an entry beside its rows: key, object, buffer header.
_ENTRY_BYTES = 512


class Cache:
    """Memory first, then disk. Event loop only.

    Args:
        capacity_bytes: of memory; 0 keeps nothing in memory.
        disk: the second tier, or None.
    """

    def __init__(self, capacity_bytes: int, disk: DiskCache | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.disk = disk
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.disk_hits = 0
        self._entries: OrderedDict[bytes, ComputedRows] = OrderedDict()
        self._reading: dict[bytes, asyncio.Future[ComputedRows | None]] = {}

    def get(self, key: bytes) -> ComputedRows | None:
        """Returns the rows of a key from memory, or None."""
        rows = self._entries.get(key)
        if rows is not None:
            self._entries.move_to_end(key)
        return rows

    async def find(self, key: bytes) -> ComputedRows | None:
        """Returns the rows of a key from memory or disk, or None."""
        rows = self.get(key)
        if rows is not None or self.disk is None or key not in self.disk:
            return rows
        reading = self._reading.get(key)
        if reading is None:
            loop = asyncio.get_running_loop()
            reading = loop.run_in_executor(self.disk.thread, self.disk.read, key)
            self._reading[key] = reading
            reading.add_done_callback(functools.partial(self._read, key))
        return await asyncio.shield(reading)  # others may wait for it

    async def find_each(self, keys: Sequence[bytes]) -> list[ComputedRows | None]:
        """Returns `find` of each key; all disk reads are queued together."""
        if self.disk is None:
            return [self.get(key) for key in keys]
        return await asyncio.gather(*map(self.find, keys))

    def _read(self, key: bytes, reading: asyncio.Future[ComputedRows | None]) -> None:
        del self._reading[key]
        rows = None if reading.cancelled() else reading.result()
        if rows is not None:
            self.disk_hits += 1
            self._keep(key, rows)

    def put(self, key: bytes, rows: ComputedRows) -> None:
        """Keeps computed rows, unless some are not finite."""
        if rows.first_bad_row is not None:
            return
        self._keep(key, rows)
        if self.disk is not None:
            self.disk.write_soon(key, rows)

    def _keep(self, key: bytes, rows: ComputedRows) -> None:
        cost = rows.num_bytes + _ENTRY_BYTES
        if cost > self.capacity_bytes or key in self._entries:
            return
        self._entries[key] = rows
        self.used_bytes += cost
        while self.used_bytes > self.capacity_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.used_bytes -= oldest.num_bytes + _ENTRY_BYTES
            self.evictions += 1
