"""Each broken rule gives one message everywhere: REST, command line and trainer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from lectern_common.errors import CorruptData, Incompatible, InvalidSpec, LecternError
from tests.control_plane.conftest import serving
from tests.support.training.runs import Home, assembled
from tests.support.training.shards import write_shards


@dataclass(frozen=True)
class Case:
    """A spec that breaks a rule, and the message; `{data}` stands for the data root."""

    sections: dict[str, Any]
    error: type[LecternError]
    says: str


CASES = {
    "held-out-share": Case(
        {"data": {"path": "one-row"}},
        InvalidSpec,
        "data.validation_fraction: holding out 0.1 of 1 row leaves none to train on; lower it, or "
        "data.seq_len, or prepare more data",
    ),
    "rows-a-step": Case(
        {"batch": {"sequences_per_step": 500}},
        InvalidSpec,
        "batch.sequences_per_step: a step needs 500 rows, but the training data has only 224; "
        "lower it, or data.seq_len, or prepare more data",
    ),
    "row-length": Case(
        {"data": {"path": "short"}},
        InvalidSpec,
        "data.seq_len: {data}/short has 8 tokens, but a row needs 8 + 1; lower it, or prepare more "
        "data",
    ),
    "positions": Case(
        {"data": {"seq_len": 129}},
        Incompatible,
        "data.seq_len 129 exceeds the 128 positions of the student; lower it",
    ),
    "tokenizers-of-both-sets": Case(
        {"data": {"validation_fraction": None, "validation_path": "foreign"}},
        Incompatible,
        "data.validation_path foreign was prepared with a different tokenizer than data.path text; "
        "prepare both with the same one",
    ),
    "tokenizer-beside-shards": Case(
        {"student": {"config": "tokenized"}, "data": {"path": "tampered"}},
        CorruptData,
        "{data}/tampered/tokenizer.json is not the tokenizer that the shards beside it were "
        "written with; prepare the data again",
    ),
    "document-starts": Case(
        {"data": {"attention_across_documents": False}},
        InvalidSpec,
        "data.attention_across_documents: false needs the start of each document, which "
        "{data}/text does not record; prepare it again with `lectern data prepare`, or set true",
    ),
    "starts-of-chats": Case(
        {"data": {"path": "masked"}},
        InvalidSpec,
        "data.path: {data}/masked holds chats, but does not record where each begins; prepare it "
        "again with `lectern data prepare`",
    ),
    "rows-of-chats": Case(
        {"data": {"path": "chats-with-bos"}},
        InvalidSpec,
        "data.path: {data}/chats-with-bos was prepared with bos_policy row, which is for text: a "
        "row of chats begins with a chat; prepare it again with --bos-policy document or none",
    ),
    "documents-in-rows": Case(
        {"data": {"path": "text-with-bos", "attention_across_documents": False}},
        InvalidSpec,
        "data.attention_across_documents: false lets documents begin within a row, but "
        "{data}/text-with-bos was prepared with bos_policy row, so they would begin without their "
        "first token; prepare it again with --bos-policy document, or set true",
    ),
    "long-chats": Case(
        {"data": {"path": "chats", "long_chats": "error"}},
        InvalidSpec,
        "data.long_chats: error: 2 of 9 chats in {data}/chats have more than 8 + 1 tokens (the "
        "longest 12); raise data.seq_len, or set cut or drop",
    ),
    "long-chats-held-out": Case(
        {
            "data": {
                "validation_fraction": None,
                "validation_path": "chats",
                "long_chats": "error",
            }
        },
        InvalidSpec,
        "data.long_chats: error: 2 of 9 chats in {data}/chats have more than 8 + 1 tokens (the "
        "longest 12); raise data.seq_len, or set cut or drop",
    ),
    "no-chat-left": Case(
        {"data": {"path": "chats", "seq_len": 3, "long_chats": "drop"}},
        InvalidSpec,
        "data.long_chats: drop leaves none of 9 chats in {data}/chats: all have more than 3 + 1 "
        "tokens; raise data.seq_len, or set cut",
    ),
    "no-chats": Case(
        {"data": {"long_chats": "drop"}},
        InvalidSpec,
        "data.long_chats: has no effect: text holds text, not chats; remove it",
    ),
    "held-out-chats": Case(
        {"data": {"path": "one-chat"}},
        InvalidSpec,
        "data.validation_fraction: holding out 0.1 of 1 chat leaves none to train on; lower it, or "
        "prepare more data",
    ),
    "rows-of-unknown-ids": Case(
        {"data": {"path": "odd-text", "max_bad_rows_fraction": 0.2}},
        Incompatible,
        "3 of 12 rows of {data}/odd-text (25.00%) have ids outside the student's vocabulary of 40; "
        "the first are rows 2, 3, 9. data.max_bad_rows_fraction allows 0.2; prepare the data with "
        "the student's tokenizer, or choose a student that has these ids",
    ),
    "chats-of-unknown-ids": Case(
        {"data": {"path": "odd-chats"}},
        Incompatible,
        "1 of 9 chats of {data}/odd-chats (11.11%) have ids outside the student's vocabulary of "
        "40; the first are chats 4. data.max_bad_rows_fraction allows 0.001; prepare the data with "
        "the student's tokenizer, or choose a student that has these ids",
    ),
    "unknown-ids-held-out": Case(
        {"data": {"validation_fraction": None, "validation_path": "odd-text"}},
        Incompatible,
        "3 of 12 rows of {data}/odd-text (25.00%) have ids outside the student's vocabulary of 40; "
        "the first are rows 2, 3, 9. data.max_bad_rows_fraction allows 0.001; prepare the data "
        "with the student's tokenizer, or choose a student that has these ids",
    ),
    "no-usable-row": Case(
        {"data": {"path": "all-odd", "max_bad_rows_fraction": 1}},
        Incompatible,
        "{data}/all-odd has no usable row: 4 with ids that the student lacks; prepare data that "
        "suits the student and data.seq_len",
    ),
    "nothing-learnt": Case(
        {"data": {"path": "silent-chats", "long_chats": "drop"}},
        Incompatible,
        "{data}/silent-chats has no usable chat: 2 longer than a row and dropped "
        "(data.long_chats), 7 with nothing that is learnt; prepare data that suits the student and "
        "data.seq_len",
    ),
    "one-layer": Case(
        {"student": {"config": None, "init": "shallow", "keep_every_nth_layer": 2}},
        InvalidSpec,
        "student.keep_every_nth_layer: the student has 1 layer, so none can be left out; remove "
        "this setting, or choose another student.init",
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    write_shards(home.path / "data/one-row", np.arange(9))
    write_shards(home.path / "data/short", np.arange(8))
    write_shards(home.path / "data/foreign", np.arange(90) % 9, tokenizer_sha256="1" * 64)
    write_shards(home.path / "data/masked", np.arange(60) % 9, mask=np.ones(60))
    row: dict[str, Any] = {"bos_policy": "row", "bos_token_id": 1, "documents": [0, 20]}
    write_shards(home.path / "data/text-with-bos", np.arange(60) % 9, **row)
    write_shards(home.path / "data/chats-with-bos", np.arange(60) % 9, content="chats", **row)
    chats: dict[str, Any] = {"mask": np.ones(60), "documents": [0, 10, 15, 20, 32, 37, 42, 47, 52]}
    write_shards(home.path / "data/chats", np.arange(60) % 37, **chats)
    odd = np.arange(100) % 40
    odd[[24, 75]] = 41, 3_000  # the last label of row 2 and the first input of row 3; in row 9
    write_shards(home.path / "data/odd-text", odd)
    # Token 31 is in chat 3, but behind the cut; token 34 is in chat 4.
    long = np.arange(60) % 37
    long[[31, 34]] = 90
    write_shards(home.path / "data/odd-chats", long, **chats)
    write_shards(home.path / "data/all-odd", np.full(33, 77))
    silent = {**chats, "mask": np.zeros(60)}
    write_shards(home.path / "data/silent-chats", np.arange(60) % 37, content="chats", **silent)
    write_shards(home.path / "data/one-chat", np.arange(9), mask=np.ones(9), documents=[0])
    home.tokenized("tampered", 300)
    other = home.tokenized("other", 280) / "tokenizer.json"
    other.rename(home.path / "data/tampered/tokenizer.json")
    home.model("tokenized", vocab_size=280, tokenizer=True, weights=False)
    home.model("shallow")
    return home


@pytest.fixture(scope="module")
def client(home: Home) -> Iterator[TestClient]:
    with serving(home.path) as (client, _):
        yield client


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_broken_rule_gives_the_same_message_everywhere(
    case: Case, home: Home, client: TestClient, lectern: Any, stand_in_trainer: Any
) -> None:
    spec = home.spec("broken", **case.sections)
    path = home.path / "spec.yaml"
    path.write_text(spec.model_dump_json())  # JSON is YAML
    sentence = case.says.format(data=home.roots.data)

    answered = client.post("/runs", json=spec.model_dump(mode="json"))
    assert answered.json()["detail"] == sentence
    # Damaged data that a spec names is the spec's fault.
    status = 422 if case.error is CorruptData else case.error.http_status
    assert answered.status_code == status

    refused = lectern("train", path, "--home", home.path)
    assert (refused.code, refused.err) == (case.error.exit_code, f"error: {sentence}\n")
    checked = lectern("train", path, "--home", home.path, "--dry-run", "--json")
    assert sentence in [check["message"] for check in checked.json["checks"]]
    assert not (home.roots.runs / "broken").exists()

    with pytest.raises(case.error) as caught, assembled(home, home.run(**case.sections)):
        pass
    assert str(caught.value) == sentence
