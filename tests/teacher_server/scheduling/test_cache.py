"""The cache in memory and on disk: bounds, order of eviction, damage, the next process."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from lectern_common.errors import Misconfigured
from teacher_server.engine.seam import ComputedRows
from teacher_server.scheduling.cache import Cache
from teacher_server.scheduling.disk_cache import DiskCache


def rows(value: int, size: int = 1000, lengths: list[int] | None = None) -> ComputedRows:
    data = np.full(size, value, np.uint8)
    return ComputedRows(data.data, None if lengths is None else np.array(lengths, np.uint32))


def key(number: int) -> bytes:
    return bytes([number]) * 32


def find(cache: Cache, number: int) -> ComputedRows | None:
    return asyncio.run(cache.find(key(number)))


def test_the_least_recently_used_rows_go_first_and_the_bound_holds() -> None:
    cache = Cache(4 * 1600)
    for number in range(4):
        cache.put(key(number), rows(number))
    assert cache.get(key(0)) is not None  # used again
    cache.put(key(4), rows(4))
    kept = [number for number in range(5) if cache.get(key(number)) is not None]
    assert kept == [0, 2, 3, 4]
    assert cache.evictions == 1
    assert 4 * 1000 < cache.used_bytes <= cache.capacity_bytes


def test_rows_that_are_not_finite_or_too_large_are_not_kept() -> None:
    cache = Cache(2000)
    cache.put(key(1), ComputedRows(memoryview(bytearray(10)), None, 3))
    cache.put(key(2), rows(2, size=3000))
    assert cache.get(key(1)) is None and cache.get(key(2)) is None
    assert cache.used_bytes == 0


def test_a_cache_of_no_bytes_keeps_nothing() -> None:
    cache = Cache(0)
    cache.put(key(1), rows(1))
    assert find(cache, 1) is None


def test_rows_on_disk_outlive_memory_and_the_process(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path / "cache", 1 << 20)
    cache = Cache(2000, disk)
    for number in range(4):
        cache.put(key(number), rows(number, lengths=[number, 7]))
    disk.close()
    assert cache.get(key(0)) is None  # memory holds one

    again = Cache(2000, DiskCache(tmp_path / "cache", 1 << 20))
    for number in range(4):
        found = find(again, number)
        assert found is not None and found.payload == rows(number).payload
        assert found.row_lengths is not None and found.row_lengths.tolist() == [number, 7]
    assert again.disk_hits == 4
    assert find(again, 9) is None


def test_concurrent_lookups_of_the_same_rows_share_one_read(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path, 1 << 20)
    disk.write_soon(key(1), rows(1))
    disk.thread.submit(int).result()
    cache = Cache(0, disk)

    async def together() -> list[ComputedRows | None]:
        return await asyncio.gather(*(cache.find(key(1)) for _ in range(5)))

    found = asyncio.run(together())
    assert all(one is not None and one.payload == rows(1).payload for one in found)
    assert cache.disk_hits == 1
    assert find(cache, 1) is not None  # memory keeps nothing: read again
    assert cache.disk_hits == 2


def test_the_disk_bound_holds_and_the_least_recently_used_files_go(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path, 3500)
    for number in range(5):
        disk.write_soon(key(number), rows(number))
    disk.close()
    assert [number for number in range(5) if key(number) in disk] == [2, 3, 4]
    files = list(tmp_path.glob("*/*"))
    assert sum(path.stat().st_size for path in files) == disk.used_bytes <= 3500


def test_a_smaller_bound_at_the_next_start_deletes_the_excess(tmp_path: Path) -> None:
    first = DiskCache(tmp_path, 1 << 20)
    for number in range(5):
        first.write_soon(key(number), rows(number))
    first.close()
    assert len(DiskCache(tmp_path, 2500)) == 2
    assert len(list(tmp_path.glob("*/*"))) == 2


def test_rows_larger_than_the_bound_do_not_evict_the_rest(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path, 3500)
    disk.write_soon(key(1), rows(1))
    disk.write_soon(key(2), rows(2, size=3500))
    disk.close()
    assert key(1) in disk and key(2) not in disk


def test_two_teachers_do_not_share_a_folder(tmp_path: Path) -> None:
    first = DiskCache(tmp_path, 1 << 20)
    with pytest.raises(Misconfigured, match="another teacher"):
        DiskCache(tmp_path, 1 << 20)
    first.close()
    DiskCache(tmp_path, 1 << 20).close()


def test_a_file_that_is_temporarily_unreadable_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskCache(tmp_path, 1 << 20)
    disk.write_soon(key(1), rows(1))
    disk.thread.submit(int).result()

    def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(np, "fromfile", fail)
        assert find(Cache(0, disk), 1) is None
    assert find(Cache(0, disk), 1) is not None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_file_counts_as_absent_and_is_deleted(tmp_path: Path, damage: str) -> None:
    disk = DiskCache(tmp_path, 1 << 20)
    disk.write_soon(key(1), rows(1))
    disk.close()
    (path,) = tmp_path.glob("*/*")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[500] ^= 1
    damaged = {"flip": bytes(data), "cut": bytes(data[:-1]), "empty": b"", "foreign": b"x" * 2000}
    path.write_bytes(damaged[damage])
    again = Cache(1 << 20, DiskCache(tmp_path, 1 << 20))
    assert find(again, 1) is None
    assert not path.exists()


def test_a_half_written_file_is_deleted_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    leftover = tmp_path / "ab" / f".{'c' * 62}.123"
    leftover.write_bytes(b"half")
    assert len(DiskCache(tmp_path, 1 << 20)) == 0
    assert not leftover.exists()


def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match="--cache-folder"):
        DiskCache(tmp_path / "file" / "cache", 1 << 20)


def test_rows_that_come_faster_than_the_disk_are_counted_not_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teacher_server.scheduling.disk_cache._MAX_UNWRITTEN_BYTES", 500)
    disk = DiskCache(tmp_path, 1 << 20)
    disk.write_soon(key(1), rows(1))
    disk.close()
    assert disk.not_written == 1 and len(disk) == 0
