import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lectern_common.errors import Conflict, CorruptData, InvalidRequest, NotFound
from lectern_common.tokens.shards import read_manifest
from lectern_data.document_split import split
from lectern_data.prepare import prepare
from lectern_data.read.documents import Document
from lectern_data.read.scan import scan
from lectern_data.settings import PrepareSettings
from lectern_data.tokens.tokenizer import load_tokenizer, train_tokenizer
from student_trainer.data.sources import open_stream

VOCAB_SIZE = 300
# The trained tokenizer splits digits from each other; it is these that give it enough to merge.
WORDS = [
    "".join(chr(97 + (3 * number + 5 * place) % 26) for place in range(6)) for number in range(30)
]
KNOWN, UNKNOWN = "<|endoftext|>", "</s>"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty different files of code-like text, some of it not ASCII."""
    folder = tmp_path_factory.mktemp("inputs") / "corpus"
    folder.mkdir()
    for number in range(30):
        lines = [
            f"def function_{number}_{line}(a, b):\n    return a * {line}  # {WORDS[number]}\n"
            for line in range(9)
        ]
        (folder / f"file_{number:02d}.py").write_text("".join(lines) + f"# caf\xe9 {number}\n")
    return folder


def prepared(corpus: Path, output: Path, on_progress=lambda stage, done, total: None, **changes):
    options = {"train_vocab_size": VOCAB_SIZE, "validation_fraction": 0.2, **changes}
    return prepare(PrepareSettings([corpus], output, **options), on_progress=on_progress)


def ids_of(dataset: Path) -> np.ndarray:
    """Reads the shards only by the specification: flat uint32 little-endian, in name order."""
    files = sorted(dataset.glob("shard-*.bin"))
    return np.concatenate([np.frombuffer(file.read_bytes(), "<u4") for file in files])


def documents_of(dataset: Path, eos: int) -> list[str]:
    """Splits the ids at each end-of-text token and decodes them with the tokenizers library."""
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    ids = ids_of(dataset).tolist()
    texts: list[str] = []
    current: list[int] = []
    for token in ids:
        if token == eos:
            texts.append(tokenizer.decode(current, skip_special_tokens=False))
            current = []
        else:
            current.append(token)
    assert not current
    return texts


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_id_is_below_the_vocabulary_size(corpus, tmp_path):
    """PRETOK-001"""
    prepared(corpus, tmp_path / "data")

    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    assert ids_of(tmp_path / "data").max() < manifest["vocab_size"] == VOCAB_SIZE


def test_every_shard_is_a_whole_number_of_ids_and_all_but_the_last_are_full(corpus, tmp_path):
    """PRETOK-002"""
    result = prepared(corpus, tmp_path / "data", shard_tokens=1000)

    sizes = [path.stat().st_size for path in sorted((tmp_path / "data").glob("shard-*.bin"))]
    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    assert sizes[:-1] == [4000] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= 4000 and sizes[-1] % 4 == 0
    assert len(sizes) == manifest["shard_count"] == result.training.shards > 1
    assert sum(sizes) == 4 * manifest["total_tokens"] == 4 * result.training.tokens


def test_ids_decode_to_the_input_texts(corpus, tmp_path):
    """PRETOK-003"""
    prepared(corpus, tmp_path / "data")

    texts = [
        text for name in ("data", "data-validation") for text in documents_of(tmp_path / name, 0)
    ]
    assert sorted(texts) == sorted(path.read_text() for path in corpus.iterdir())


def test_two_runs_write_the_same_bytes(corpus, tmp_path):
    """PRETOK-004: in processes with different hash seeds and different paths."""
    program = (
        "import sys; from pathlib import Path; from lectern_data.prepare import prepare;"
        "from lectern_data.settings import PrepareSettings;"
        "prepare(PrepareSettings([Path(sys.argv[1])], Path(sys.argv[2]), train_vocab_size=300,"
        "        validation_fraction=0.2))"
    )
    moved = tmp_path / "elsewhere" / corpus.name
    moved.parent.mkdir()
    moved.symlink_to(corpus, target_is_directory=True)
    trees = []
    for seed, source in (("1", corpus), ("2", moved)):
        output = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", program, str(source), str(output / "data")],
            check=True,
            env={"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": "true"},
        )
        trees.append(tree(output))
    assert trees[0] == trees[1]
    assert "data-validation/manifest.json" in trees[0]


def test_manifest_hashes_hold(corpus, tmp_path):
    """PRETOK-005"""
    prepared(corpus, tmp_path / "data", shard_tokens=1000)

    for name in ("data", "data-validation"):
        folder = tmp_path / name
        manifest = json.loads((folder / "manifest.json").read_text())
        shards = b"".join(path.read_bytes() for path in sorted(folder.glob("shard-*.bin")))
        assert manifest["corpus_sha256"] == hashlib.sha256(shards).hexdigest()
        vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        lines = "".join(
            f"{id}\t{token}\n" for id, token in sorted((i, t) for t, i in vocabulary.items())
        )
        assert manifest["tokenizer_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
        assert manifest["schema"] == "pretokenize-bin-v1"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "swap", "manifest"])
def test_tampering_is_detected(corpus, tmp_path, damage):
    """PRETOK-006: by the code with which the trainer opens a dataset."""
    prepared(corpus, tmp_path / "data", shard_tokens=1000)
    folder = tmp_path / "data"
    open_stream(folder)
    first, second = folder / "shard-00000.bin", folder / "shard-00001.bin"
    data = bytearray(first.read_bytes())
    if damage == "flip":
        data[100] ^= 1
        first.write_bytes(data)
    elif damage == "truncate":
        first.write_bytes(data[:-4])
    elif damage == "remove":
        second.unlink()
    elif damage == "swap":
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    else:
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text.replace('"shard_count"', '"shards"'))

    with pytest.raises(CorruptData):
        open_stream(folder)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("none", [1, 2]), ("between", [1, 0, 2]), ("after", [1, 0, 2, 0])],
)
def test_the_end_of_text_token_is_where_the_policy_says(tmp_path, policy, expected):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    inputs = [tmp_path / "a.txt", tmp_path / "b.txt"]

    prepare(
        PrepareSettings(
            inputs,
            tmp_path / "data",
            train_vocab_size=300,
            eos_policy=policy,
            validation_fraction=0,
        )
    )

    tokenizer = Tokenizer.from_file(str(tmp_path / "data/tokenizer.json"))
    pieces = {0: [0], 1: tokenizer.encode("one").ids, 2: tokenizer.encode("two").ids}
    assert ids_of(tmp_path / "data").tolist() == [id for piece in expected for id in pieces[piece]]
    manifest = read_manifest(tmp_path / "data")
    assert manifest.eos_policy == policy
    assert manifest.eos_token_id == (None if policy == "none" else 0)


def test_a_text_that_spells_the_end_of_text_token_does_not_end_itself(tmp_path):
    (tmp_path / "a.txt").write_text("before <|endoftext|> after")

    prepare(
        PrepareSettings(
            [tmp_path / "a.txt"], tmp_path / "data", train_vocab_size=300, validation_fraction=0
        )
    )

    assert ids_of(tmp_path / "data").tolist().count(0) == 1
    assert documents_of(tmp_path / "data", 0) == ["before <|endoftext|> after"]


def test_a_given_tokenizer_is_used_and_copied_unchanged(corpus, tmp_path):
    prepared(corpus, tmp_path / "first")

    prepare(
        PrepareSettings(
            [corpus], tmp_path / "second", tokenizer=tmp_path / "first", validation_fraction=0.2
        )
    )

    for name in ("first", "first-validation"):
        second = tmp_path / name.replace("first", "second")
        assert tree(tmp_path / name) == tree(second)


def test_the_tokenizer_is_trained_only_on_the_training_part(corpus, tmp_path):
    result = prepared(corpus, tmp_path / "data")
    assert result.validation is not None
    training_texts = documents_of(tmp_path / "data", 0)

    alone = train_tokenizer(training_texts, VOCAB_SIZE)

    assert alone.tokenizer_json == (tmp_path / "data/tokenizer.json").read_bytes()


def test_transformers_reads_the_same_tokenizer_from_a_dataset(corpus, tmp_path):
    from transformers import AutoTokenizer

    prepared(corpus, tmp_path / "data")
    text = "def caf\xe9(a, b):  # 12\n"

    loaded = AutoTokenizer.from_pretrained(tmp_path / "data")

    assert (
        loaded(text)["input_ids"]
        == Tokenizer.from_file(str(tmp_path / "data/tokenizer.json")).encode(text).ids
    )
    assert loaded.eos_token_id == 0


def test_equal_documents_fall_on_the_same_side(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number % 5}")
    documents, _ = scan([(str(path), path) for path in sorted(tmp_path.iterdir())])

    training, validation = split(documents, 0.3, seed=0)

    assert {entry.sha256 for entry in training}.isdisjoint(entry.sha256 for entry in validation)
    assert len(validation) == 8 and len(training) == 12


def test_the_split_depends_on_seed_and_content_not_on_names(tmp_path):
    paths = []
    for number in range(40):
        path = tmp_path / f"{number}.txt"
        path.write_text(f"text {number:02d}")
        paths.append(path)
    named, _ = scan([(str(path), path) for path in paths])
    renamed, _ = scan([(f"other{path.name}", path) for path in reversed(paths)])

    def held_out(documents, seed):
        return {document.sha256 for document in split(documents, 0.25, seed)[1]}

    assert held_out(named, 0) == held_out(renamed, 0) != held_out(named, 1)
    assert len(held_out(named, 0)) == 10


def test_configuration_among_code_is_refused_with_the_pattern_that_leaves_it_out(tmp_path):
    project = tmp_path / "my-node-project"
    (project / "src").mkdir(parents=True)
    for number in range(20):
        (project / f"src/{number}.ts").write_text(f"export const n = {number};\n" * 20)
    (project / "package.json").write_text('{"name": "app", "version": "1.0.0"}')
    (project / "tsconfig.json").write_text('{\n  // comments\n  "compilerOptions": {}\n}')
    (project / "src/colours.json").write_text('["red", {"text": 3}]')
    (project / "src/logo.png").write_bytes(b"\x89PNG\0")
    settings = PrepareSettings([project], tmp_path / "data", train_vocab_size=300)
    with pytest.raises(InvalidRequest) as caught:
        prepare(settings)
    said = str(caught.value)
    assert "my-node-project/package.json: has no text under 'text', but 'name', 'version'" in said
    assert "inside folders with --exclude '*.json' --exclude '*.png')" in said
    exclude = re.findall("--exclude '([^']+)'", said)
    done = prepare(replace(settings, exclude=exclude))
    assert done.validation is not None and not done.left_out
    assert done.training.documents + done.validation.documents == 20


def documents_of_sizes(*sizes: int) -> list[Document]:
    return [
        Document(f"{n}", Path(f"{n}"), size, hashlib.sha256(b"%d" % n).hexdigest())
        for n, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("sizes", "fraction", "most"),
    [
        ([950_000] + [500] * 100, 0.01, 0.02),
        ([950_000, 50_000], 0.01, 0.05),
        ([450_000, 450_000, 100_000], 0.01, 0.1),
        ([400_000, 300_000, 200_000] + [1000] * 100, 0.05, 0.1),
        ([10_000_000] * 3 + [9_000] * 900, 0.1, 0.2),
    ],
)
def test_giant_documents_stay_in_training_with_every_seed(sizes, fraction, most):
    documents = documents_of_sizes(*sizes)
    for seed in range(100):
        training, validation = split(documents, fraction, seed)
        held_out = sum(entry.text_bytes for entry in validation)
        assert training and 0 < held_out <= most * sum(sizes)
        assert len(training) + len(validation) == len(documents)


@pytest.mark.parametrize(
    ("sizes", "fraction"),
    [([10, 10, 1000], 0.5), ([7, 9], 0.9), ([3, 800, 5, 4], 0.6), ([1] * 20, 0.99)],
)
def test_two_documents_or_more_are_always_split(sizes, fraction):
    documents = documents_of_sizes(*sizes)
    for seed in range(100):
        training, validation = split(documents, fraction, seed)
        assert training and validation and len(training) + len(validation) == len(sizes)


def test_one_document_however_often_cannot_be_split():
    documents = documents_of_sizes(10) * 3
    with pytest.raises(InvalidRequest, match="1 distinct document cannot be split; add more, or"):
        split(documents, 0.5, seed=0)


def test_a_corpus_without_giants_is_split_as_it_always_was(tmp_path):
    """The rule before giants were passed over: by the hash, until the size is reached."""
    documents = documents_of_sizes(*(1000 + 37 * (n % 40) for n in range(500)))
    for seed in range(20):
        expected, drawn = set(), 0
        for entry in sorted(
            documents, key=lambda e: hashlib.sha256(f"{seed}:{e.sha256}".encode()).hexdigest()
        ):
            if drawn >= 0.05 * sum(entry.text_bytes for entry in documents):
                break
            expected.add(entry.sha256)
            drawn += entry.text_bytes
        assert {entry.sha256 for entry in split(documents, 0.05, seed)[1]} == expected


def test_a_validation_set_of_another_size_than_asked_is_said(tmp_path):
    for number, size in enumerate((9000, 700, 500)):
        (tmp_path / f"{number}.txt").write_text("word " * size)
    said: list[str] = []
    prepare(
        PrepareSettings([tmp_path], tmp_path / "out/data", train_vocab_size=300),
        on_event=said.append,
    )
    assert len(said) == 1 and "% of the text instead of 1.0%" in said[0]


def test_one_document_cannot_be_split(tmp_path):
    (tmp_path / "a.txt").write_text("alone")

    with pytest.raises(InvalidRequest, match="cannot be split"):
        prepare(PrepareSettings([tmp_path / "a.txt"], tmp_path / "data", train_vocab_size=300))
    assert not (tmp_path / "data").exists()


def test_too_many_faults_are_refused_and_named(corpus, tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_bytes(b"\xff\xfe")

    with pytest.raises(InvalidRequest, match=r"1 of 31 documents .*bad\.py: not UTF-8 \(byte 0\)"):
        prepare(
            PrepareSettings(
                [corpus, bad], tmp_path / "data", train_vocab_size=300, max_fault_fraction=0.03
            )
        )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.py"]

    result = prepare(
        PrepareSettings(
            [corpus, bad],
            tmp_path / "data",
            train_vocab_size=300,
            max_fault_fraction=0.04,
        )
    )
    assert [entry.name for entry in result.left_out] == ["bad.py"]


def test_inputs_without_text_are_refused(tmp_path):
    (tmp_path / "empty.txt").touch()

    with pytest.raises(InvalidRequest, match="no text in the inputs"):
        prepare(PrepareSettings([tmp_path / "empty.txt"], tmp_path / "data", train_vocab_size=300))


def test_a_dataset_is_replaced_only_on_request_and_a_stale_validation_set_is_removed(
    corpus, tmp_path
):
    prepared(corpus, tmp_path / "data")
    before = tree(tmp_path)

    with pytest.raises(Conflict, match="exists"):
        prepared(corpus, tmp_path / "data")
    assert tree(tmp_path) == before

    prepared(corpus, tmp_path / "data", validation_fraction=0, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_that_is_not_a_dataset_is_never_replaced(corpus, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/thesis.txt").write_text("years of work")

    with pytest.raises(Conflict, match="is not a dataset"):
        prepared(corpus, tmp_path / "data", force=True)
    assert (tmp_path / "data/thesis.txt").exists()


def test_an_error_halfway_leaves_only_the_old_dataset(corpus, tmp_path):
    prepared(corpus, tmp_path / "data")
    before = tree(tmp_path)

    def fail(stage: str, done: int, total: int) -> None:
        if stage == "writing":
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        prepared(corpus, tmp_path / "data", force=True, on_progress=fail)
    assert {name: data for name, data in tree(tmp_path).items() if name in before} == before
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".data.work", "data", "data-validation"]  # the work goes on from there


def test_the_leftovers_of_a_killed_process_are_removed(corpus, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    leftover = tmp_path / f".data.new.{child.pid}"
    leftover.mkdir()
    (leftover / "shard-00000.bin").write_bytes(b"1234")

    prepared(corpus, tmp_path / "data", validation_fraction=0)

    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of"),
        ({"train_vocab_size": 300, "tokenizer": Path("x")}, "exactly one of"),
        ({"train_vocab_size": 256}, "too small"),
        ({"train_vocab_size": 300, "validation_fraction": 1.0}, "below 1"),
        ({"train_vocab_size": 300, "validation_fraction": float("nan")}, "below 1"),
        ({"train_vocab_size": 300, "shard_tokens": 0}, "at least 1"),
        ({"train_vocab_size": 300, "workers": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(corpus, tmp_path, options, message):
    with pytest.raises(InvalidRequest, match=message):
        prepare(PrepareSettings([corpus], tmp_path / "data", **options))
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_without_end_of_text_token_needs_one_named(corpus, tmp_path):
    prepared(corpus, tmp_path / "first")
    (tmp_path / "first/tokenizer_config.json").unlink()
    given = {"tokenizer": tmp_path / "first/tokenizer.json"}

    with pytest.raises(InvalidRequest, match="set --eos-token"):
        prepare(PrepareSettings([corpus], tmp_path / "second", **given))
    with pytest.raises(InvalidRequest, match="this tokenizer has no token"):
        prepare(PrepareSettings([corpus], tmp_path / "second", eos_token=UNKNOWN, **given))
    prepare(PrepareSettings([corpus], tmp_path / "second", eos_token=KNOWN, **given))
    prepare(PrepareSettings([corpus], tmp_path / "third", eos_policy="none", **given))


def test_a_broken_or_missing_tokenizer_is_refused(corpus, tmp_path):
    with pytest.raises(NotFound, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CorruptData, match=r"not a tokenizer\.json"):
        load_tokenizer(tmp_path)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_survives_a_trained_tokenizer(text):
    TRAINED.tokenizer.encode_special_tokens = True
    ids = TRAINED.tokenizer.encode(text, add_special_tokens=False).ids
    assert TRAINED.tokenizer.decode(ids, skip_special_tokens=False) == text


TRAINED = train_tokenizer(["some text to begin with\n"], 300)
