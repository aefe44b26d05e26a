"""Compressed files give the documents of the files that they hold; others are refused by name."""

import bz2
import gzip
import hashlib
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from lectern_data.prepare import prepare
from lectern_data.read.documents import texts_of
from lectern_data.read.rows import Content
from lectern_data.read.scan import scan
from lectern_data.settings import PrepareSettings

ROWS = [f"row {number} " + "words " * number for number in range(200)]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
}


def lines(rows: list[str]) -> bytes:
    return "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("a.jsonl", lines(ROWS), ROWS),
        ("a.JSON", json.dumps([{"text": row} for row in ROWS]).encode(), ROWS),
        ("a.txt", "\n".join(ROWS).encode(), ["\n".join(ROWS)]),
        ("a", b"no ending", ["no ending"]),
    ],
)
def test_a_compressed_file_holds_the_documents_of_the_plain_one(
    tmp_path: Path, suffix: str, name: str, data: bytes, texts: list[str]
) -> None:
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESS[suffix](data))
    documents, left_out = scan([(path.name, path)])
    assert not left_out and list(texts_of(documents, Content())) == texts


def test_rows_of_a_compressed_file_are_read_again_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS)))
    documents, _ = scan([("a", path)])
    backwards = documents[::-3]
    assert list(texts_of(backwards, Content())) == ROWS[::-3]


def test_a_file_that_was_replaced_is_not_read_from_the_stream_of_the_old_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.txt.gz"
    for text in ("old text", "newer text"):
        path.write_bytes(gzip.compress(text.encode()))
        documents, _ = scan([("a", path)])
        assert list(texts_of(documents, Content())) == [text]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_damaged_file_keeps_the_rows_before_the_damage(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    rows = [hashlib.sha256(b"%d" % number).hexdigest() * 150 for number in range(200)]
    data = COMPRESS[suffix](lines(rows))
    path.write_bytes(data[: 2 * len(data) // 3])
    documents, left_out = scan([(path.name, path)])
    assert list(texts_of(documents, Content())) == rows[: len(documents)]
    [lost] = left_out
    assert lost.is_fault and lost.name == f"a.jsonl{suffix}" + (
        f"#{len(documents) + 1}" if documents else ""
    )
    assert lost.reason.startswith("cannot be read: ")


def test_a_text_that_unpacks_beyond_the_limit_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"x" * 100_001))
    documents, [left_out] = scan([("a", path)], max_document_bytes=100_000)
    assert not documents and left_out.reason.startswith("larger than 100,000 bytes")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.jsonl.zst", "compressed in a way that is not read here; unpack it"),
        ("a.txt.lz4", "compressed in a way that is not read here"),
        ("a.txt.Z", "compressed in a way that is not read here"),
        ("a.zip", "an archive; unpack it"),
        ("a.tar.gz", "an archive; unpack it"),
        ("a.tgz", "an archive; unpack it"),
        ("a.parquet.gz", "a compressed Parquet file; unpack it"),
        ("a.csv", "a table, not text; convert it to .jsonl or Parquet"),
        ("a.TSV.xz", "a table, not text"),
        ("a.arrow", "a table, not text"),
        ("a.jsonl", "a gzip file; rename it to end in .gz"),
    ],
)
def test_what_is_not_read_is_named_with_what_to_do(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"text,label\nx,1\n"))
    documents, [left_out] = scan([(name, tmp_path / name)])
    assert not documents and left_out.name == name and left_out.reason.startswith(reason)


def test_a_dataset_of_a_compressed_file_is_that_of_the_plain_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    for name in ("a.jsonl", "a.jsonl.gz"):
        settings = PrepareSettings(
            [tmp_path / name],
            tmp_path / f"out/{name}",
            train_vocab_size=300,
            piece_bytes=5000,
            workers=2,
        )
        prepare(settings)
    plain, packed = (tmp_path / f"out/{name}" for name in ("a.jsonl", "a.jsonl.gz"))
    names = sorted(path.name for path in plain.iterdir())
    assert names == sorted(path.name for path in packed.iterdir())
    assert all((plain / name).read_bytes() == (packed / name).read_bytes() for name in names)
