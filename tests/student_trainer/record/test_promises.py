"""What a record's manifest promises, byte by byte: PRETOK-001 to 006 for records.

Each test names the one-line change that turns it red.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lectern_common.errors import CorruptData
from lectern_common.teacher.record.bits import pack_bits
from lectern_common.teacher.record.index import ENTRY, checksum
from lectern_common.teacher.record.manifest import read_record_manifest
from lectern_common.teacher.record.reader import RecordReader, require_intact_record
from lectern_common.tokens.tokenizer_map import read_tokenizer_map, tokenizer_sha256
from lectern_common.wire.formats import Representation
from student_trainer.targets import TopKTargets
from student_trainer.teacher.recorded import RecordedTeacher
from student_trainer.teacher.remote import connect_teacher
from tests.student_trainer.record.test_recorded_runs import made, online, rewritten
from tests.support.models import write_tiny_model
from tests.support.servers import TeacherThread, teacher_of
from tests.support.training.runs import VOCAB_SIZE, Home

TOP_FIVE: dict[str, Any] = {"representation": "top_k", "top_k": 5}
ROW_BYTES = {"hidden": 32 * 4, "top_k": 4 + 10 + 4}  # five ids of 6 bits; codes; the rest
KINDS = [{}, TOP_FIVE, {"representation": "sampled", "num_draws": 9}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherThread]:
    folder = tmp_path_factory.mktemp("served")
    model = write_tiny_model(folder / "teacher", vocab_size=VOCAB_SIZE, hidden=32, seed=1)
    with teacher_of(model) as teacher:
        yield teacher


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def recorded(home: Home, served: TeacherThread, teacher: dict[str, Any]) -> Path:
    made(home, home.spec("recording", **online(served, **teacher)))
    return home.roots.data / "answers"


def opened(record: Path) -> RecordedTeacher:
    return RecordedTeacher(record, vocab_size=VOCAB_SIZE, device=torch.device("cpu"))


def first_rows(home: Home, count: int = 6) -> tuple[list[np.ndarray], list[np.ndarray]]:
    tokens = np.fromfile(home.roots.data / "text" / "shard-00000.bin", "<u4")
    rows = [tokens[8 * row :][:8] for row in range(count)]
    return rows, [np.ones(8, bool) for _ in rows]


def test_an_id_beyond_the_vocabulary_is_never_a_target(home, served):
    """PRETOK-001. Red without `int(ids_NK.max()) >= meaning.vocab_size` in `_TopK.decode`."""
    record = recorded(home, served, TOP_FIVE)
    sequences, positions = first_rows(home)
    answers = opened(record).score(sequences, positions, Representation("top_k", top_k=5), 2.0)
    assert isinstance(answers, TopKTargets)
    assert int(answers.ids_NK.max()) < VOCAB_SIZE
    rows = bytearray((record / "training" / "rows.bin").read_bytes())
    entries = np.frombuffer((record / "training" / "index.bin").read_bytes(), ENTRY).copy()
    masks = (record / "training" / "masks.bin").read_bytes()
    for entry in entries:  # the first id of every row becomes V, and every checksum is right
        first, size = int(entry["first_byte"]), int(entry["num_bytes"])
        for row in range(first, first + size, ROW_BYTES["top_k"]):
            rows[row : row + 4] = pack_bits(np.array([[VOCAB_SIZE, 1, 2, 3, 4]]), 6)[0].tobytes()
        mask = masks[int(entry["mask_byte"]) :][:1]
        entry["crc32"] = checksum(bytes(rows[first : first + size]), mask)
    rewritten(record, "training/rows.bin", bytes(rows))
    rewritten(record, "training/index.bin", entries.tobytes())
    with pytest.raises(CorruptData, match="an id beyond the vocabulary"):
        opened(record).score(sequences, positions, Representation("top_k", top_k=5), 2.0)


@pytest.mark.parametrize("teacher", KINDS[:2], ids=["hidden", "top_k"])
def test_rows_have_the_bytes_that_their_format_says(home, served, teacher):
    """PRETOK-002. Red if `row_bytes` of manifest.py returns one byte more."""
    manifest = read_record_manifest(recorded(home, served, teacher))
    for part in manifest.parts:
        size = ROW_BYTES[part.format.name]
        assert manifest.file(f"{part.name}/rows.bin").bytes == part.rows * size
        said = part.format.row_bytes(manifest.vocab_size, manifest.hidden_size, "float32")
        assert said == size
        assert manifest.file(f"{part.name}/index.bin").bytes == 48 * part.sequences


def test_what_is_read_is_what_was_sent(home, served):
    """PRETOK-003. Red if `_sharing` does not scale, or `log_probs_of` halves its step."""
    record = recorded(home, served, TOP_FIVE)
    sequences, positions = first_rows(home)
    asked = Representation("top_k", top_k=5)
    with connect_teacher(served.address, VOCAB_SIZE, cache_root=home.roots.cache) as teacher:
        sent = teacher.score(sequences, positions, asked, 2.0)
    found = opened(record).score(sequences, positions, asked, 2.0)
    assert isinstance(sent, TopKTargets)
    assert isinstance(found, TopKTargets)
    assert torch.equal(found.ids_NK, sent.ids_NK)
    log_probs = sent.logits_NK / 2 - sent.log_normalizer_t_N[:, None]
    torch.testing.assert_close(found.logits_NK / 2, log_probs, rtol=0, atol=5e-4)
    rest = sent.log_rest_t_N - sent.log_normalizer_t_N
    torch.testing.assert_close(found.log_rest_t_N, rest, rtol=0, atol=1e-6)
    mass = found.logits_NK.double().div(2).exp().sum(-1) + found.log_rest_t_N.double().exp()
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-6)


@pytest.mark.parametrize("teacher", KINDS, ids=["hidden", "top_k", "sampled"])
def test_the_hashes_of_the_manifest_hold(home, served, teacher):
    """PRETOK-005 and 006. Red if `finish` hashes before `write_index`, or leaves a file out.

    PRETOK-004, that two are equal, is FALSIFY-TRAIN-005 in test_recorded_runs.py.
    """
    record = recorded(home, served, teacher)
    manifest = read_record_manifest(record)
    there = {
        str(path.relative_to(record)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in record.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert {file.path: file.sha256 for file in manifest.files} == there
    require_intact_record(record, manifest)
    reader = RecordReader(record)
    assert manifest.tokenizer_sha256 == tokenizer_sha256(reader.tokenizer_map())
    assert manifest.fingerprint == reader.model.fingerprint
    data = home.roots.data / "text" / "manifest.json"
    assert manifest.contexts.data_sha256s
    assert data.exists()


def test_the_tokenizer_of_the_record_is_that_of_its_teacher(home, served, tmp_path):
    """Red if `record_facts` hashes the student's map."""
    model = write_tiny_model(tmp_path / "teacher", vocab_size=300, hidden=32, tokenizer=True)
    home.model("words", vocab_size=300, tokenizer=True)
    home.tokenized()
    with teacher_of(model) as teacher:
        spec = home.spec(
            "recording", student={"config": "words"}, data={"path": "bytes"}, **online(teacher)
        )
        made(home, spec)
    manifest = read_record_manifest(home.roots.data / "answers")
    expected = tokenizer_sha256(read_tokenizer_map(model / "tokenizer.json"))
    assert manifest.tokenizer_sha256 == expected
