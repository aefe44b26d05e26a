"""Held-out text in windows: each token once, with the context that lm-evaluation-harness gives."""

import json

import numpy as np
import pytest
import torch

from lectern_common.errors import CorruptData, Incompatible, InvalidRequest, InvalidSpec, NotFound
from lectern_common.roots import Roots
from lectern_common.spec.suites import TextOptions
from lectern_common.tokens.tokenizer_map import read_tokenizer_map, tokenizer_sha256
from lectern_models.loading import load_causal_lm, tokenizer_map
from student_trainer.evaluating.subject import LoadedModel, Subject
from student_trainer.evaluating.texts import held_out_text, windows
from student_trainer.targets import IGNORE_INDEX
from tests.support.models import write_tiny_model
from tests.support.training.shards import write_shards

TEXTS = ["def add(a, b):\n    return a + b\n" * 3, "", "x", "caf\u00e9 \u2603 " * 20]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    roots = Roots.of_home(tmp_path_factory.mktemp("home"))
    write_tiny_model(roots.models / "tiny", vocab_size=300, tokenizer=True, max_positions=32)
    roots.data.mkdir()
    lines = "".join(json.dumps({"text": text, "more": 1}) + "\n" for text in TEXTS)
    (roots.data / "t.jsonl").write_text(lines)
    return roots


@pytest.fixture(scope="module")
def subject(roots):
    folder = roots.models / "tiny"
    model = load_causal_lm(folder, "float32")
    return Subject(
        "tiny",
        torch.device("cpu"),
        model,
        LoadedModel(model),
        folder=folder,
        tokens=lambda: tokenizer_map(folder),
        max_positions=32,
    )


@pytest.mark.parametrize("window", [2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 8, 9, 16, 17, 23])
def test_each_token_is_predicted_once_after_the_tokens_before_it(count, window):
    ids, found = list(range(100, 100 + count)), []
    whole = [7, *ids]
    for context, predicted in windows(ids, 7, window):
        found += predicted
        place = 1 + ids.index(predicted[0])
        assert context == whole[place - len(context) : place]
        inputs = [*context, *predicted[:-1]]
        assert len(inputs) <= window
        # Each window is as full as can be: W inputs, or all that there is before.
        assert len(inputs) == min(window, place + len(predicted) - 1)
    assert found == ids


def test_a_document_of_nothing_has_no_window():
    assert list(windows([], 7, 4)) == []
    assert list(windows([1], None, 4)) == []
    assert list(windows([1, 2], None, 4)) == [([1], [2])]


def predicted(text):
    return sorted(
        int(label)
        for batch in text.batches
        for label in batch.labels_BS.flatten()
        if label != IGNORE_INDEX
    )


@pytest.mark.parametrize("size", [1, 3, 100])
def test_all_tokens_and_all_bytes_of_a_file_are_counted(roots, subject, size):
    text = held_out_text(TextOptions(data="t.jsonl", window=8), subject, roots, size)
    ids = [token for one in TEXTS for token in subject.tokenizer().ids(one)]
    assert predicted(text) == sorted(ids)
    assert sum(text.bytes_of or ()) == sum(len(one.encode()) for one in TEXTS)
    assert all(len(batch.inputs_BS) <= size for batch in text.batches)
    assert text.facts == {"window": 8, "prefix_id": 0, "documents": 4}


def test_a_plain_text_is_one_document(roots, subject):
    (roots.data / "one.txt").write_text(TEXTS[3])
    text = held_out_text(TextOptions(data="one.txt"), subject, roots, 4)
    assert predicted(text) == sorted(subject.tokenizer().ids(TEXTS[3]))
    assert text.facts["window"] == 32


def test_only_the_first_documents_are_measured_if_so_asked(roots, subject):
    text = held_out_text(TextOptions(data="t.jsonl", max_documents=1), subject, roots, 4)
    assert predicted(text) == sorted(subject.tokenizer().ids(TEXTS[0]))


def dataset(roots, name, subject, around=(), sha256=None):
    """Writes the texts as a dataset; each document ends with `around`."""
    documents = [[*subject.tokenizer().ids(text), *around] for text in TEXTS if text]
    starts = np.cumsum([0, *(len(one) for one in documents[:-1])])
    tokens = np.concatenate([np.array(one, np.uint32) for one in documents])
    known = tokenizer_sha256(read_tokenizer_map(roots.models / "tiny" / "tokenizer.json"))
    return write_shards(
        roots.data / name,
        tokens,
        vocab_size=300,
        tokenizer_sha256=sha256 or known,
        documents=starts,
        shards=2,
    )


def test_a_dataset_counts_like_the_texts_it_is_made_of(roots, subject):
    dataset(roots, "set", subject)
    own = held_out_text(TextOptions(data="t.jsonl"), subject, roots, 4)
    theirs = held_out_text(TextOptions(data="set"), subject, roots, 4)
    assert predicted(theirs) == predicted(own)
    assert sum(theirs.bytes_of or ()) == sum(own.bytes_of or ())


def test_a_dataset_of_another_tokenizer_is_refused(roots, subject):
    dataset(roots, "other", subject, sha256="0" * 64)
    with pytest.raises(Incompatible, match="another tokenizer"):
        held_out_text(TextOptions(data="other"), subject, roots, 4)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1"),
        ('{"text": 3}', "line 1"),
        ("[]", "line 1"),
        ('{"text": "a"}\n{"words": "b"}', "line 2"),
    ],
)
def test_a_line_without_text_is_named(roots, subject, line, words):
    (roots.data / "bad.jsonl").write_text(line)
    with pytest.raises(CorruptData, match=words):
        held_out_text(TextOptions(data="bad.jsonl"), subject, roots, 4)


def test_bytes_that_are_no_text_are_refused(roots, subject):
    (roots.data / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptData, match="UTF-8"):
        held_out_text(TextOptions(data="bad.txt"), subject, roots, 4)


def test_what_is_not_there_or_empty_is_refused(roots, subject):
    with pytest.raises(NotFound, match=r"nowhere\.jsonl"):
        held_out_text(TextOptions(data="nowhere.jsonl"), subject, roots, 4)
    (roots.data / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(InvalidRequest, match="no token"):
        held_out_text(TextOptions(data="empty.jsonl"), subject, roots, 4)
    with pytest.raises(InvalidSpec, match=r"text\.data: is required"):
        held_out_text(TextOptions(), subject, roots, 4)
    with pytest.raises(InvalidSpec, match=r"text\.window: is 33, but tiny takes at most 32"):
        held_out_text(TextOptions(data="t.jsonl", window=33), subject, roots, 4)
