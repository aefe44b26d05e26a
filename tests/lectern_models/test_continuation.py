import json
from typing import Any

import pytest
import torch

from lectern_common.errors import NotFound
from lectern_models.continuation import continue_text, greedy_continuations, main
from tests.support.models import write_tiny_model
from tests.support.tokenizer_files import write_tokenizer

PROMPT = "def add("


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return write_tiny_model(tmp_path_factory.mktemp("model"), vocab_size=300, tokenizer=True)


def test_a_continuation_equals_greedy_generation_by_transformers(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    expected = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :])

    assert continue_text(folder, PROMPT, 12) == expected


@pytest.mark.parametrize(
    ("metadata", "begins"),
    [
        (None, True),
        ({"begins_texts_with": []}, False),
        ({"begins_texts_with": [300]}, True),
        ({"alpha": 1}, True),
    ],
)
def test_a_prompt_begins_as_the_model_has_learnt_it(tmp_path, metadata, begins):
    """As its training data did; else with what its tokenizer puts before a text."""
    from transformers import AutoModelForCausalLM

    write_tiny_model(tmp_path, vocab_size=310)
    tokenizer = write_tokenizer(tmp_path, special=("<s>",), begins_with="<s>")
    assert tokenizer.token_to_id("<s>") == 300
    if metadata is not None:
        (tmp_path / "distillation_metadata.json").write_text(json.dumps(metadata))
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokenizer.encode(PROMPT, add_special_tokens=begins).ids
    whole = model.generate(
        torch.tensor([ids]), max_new_tokens=9, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    expected = tokenizer.decode(whole[0, len(ids) :].tolist(), skip_special_tokens=False)
    assert continue_text(tmp_path, PROMPT, 9) == expected
    assert continue_text(tmp_path, "<s>" + PROMPT, 9) == continue_text(tmp_path, PROMPT, 9) or (
        not begins
    )


def test_several_models_answer_in_order(folder, capsys):
    other = write_tiny_model(folder / "other", vocab_size=300, tokenizer=True, seed=1)

    assert main([str(folder), str(other), "--prompt", PROMPT, "--tokens", "3"]) == 0

    assert json.loads(capsys.readouterr().out) == [
        continue_text(folder, PROMPT, 3),
        continue_text(other, PROMPT, 3),
    ]


def test_a_folder_without_tokenizer_is_refused(tmp_path, capsys):
    write_tiny_model(tmp_path)

    with pytest.raises(NotFound, match=r"no tokenizer\.json"):
        continue_text(tmp_path, PROMPT, 1)
    assert main([str(tmp_path), "--prompt", PROMPT]) == 3
    assert "no tokenizer.json" in capsys.readouterr().err


def test_each_sequence_continues_until_its_end_or_the_last_token():
    asked = []

    def counting_up(sequences):
        asked.append([list(ids) for ids in sequences])
        return [ids[-1] + 1 for ids in sequences]

    written = greedy_continuations([[1], [7, 2], [4]], 3, counting_up, ends={4, 5})

    assert written == [[2, 3], [3], []]
    assert asked == [[[1], [7, 2], [4]], [[1, 2], [7, 2, 3]], [[1, 2, 3]]]


def test_likeliest_is_called_no_more_than_once_per_token():
    calls = []

    def zeros(sequences):
        calls.append(len(sequences))
        return [0] * len(sequences)

    assert greedy_continuations([[1], [2]], 2, zeros) == [[0, 0], [0, 0]]
    assert calls == [2, 2]
    assert greedy_continuations([], 2, zeros) == []
