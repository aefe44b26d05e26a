"""The tokens at which an exported student begins and ends a text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from lectern_common.tokens.tokenizer_files import read_tokenizer_files
from lectern_models.loading import build_causal_lm
from student_trainer.student.ends import edges_of
from student_trainer.student.export import export_student
from tests.support.tokenizer_files import write_tokenizer
from tests.support.training.shards import write_shards

SPECIAL = ("<s>", "</s>", "<|im_end|>", "<|call|>")
SHAPE = {
    **{"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "intermediate_size": 16, "head_dim": 8},
}


class Case:
    """A config, a dataset with a tokenizer, and the export of a student made from both."""

    def __init__(self, path: Path, model_type: str = "llama", **ids: Any) -> None:
        self.path = path
        self.model = path / "model"
        self.dataset = path / "data"
        self.model.mkdir()
        settings = {"model_type": model_type, **SHAPE, **ids}
        (self.model / "config.json").write_text(json.dumps(settings))
        self.tokenizer = write_tokenizer(
            self.dataset, special=SPECIAL, config={"eos_token": "<|endoftext|>"}
        )

    def ids(self, *texts: str) -> list[int]:
        found = [self.tokenizer.token_to_id(text) for text in texts]
        return [one for one in found if one is not None]

    def write_data(self, tokens: list[int], **changes: Any) -> None:
        known = {name: changes.pop(name) for name in ("mask", "documents") if name in changes}
        write_shards(self.dataset, tokens, vocab_size=400, shards=2, **known)
        path = self.dataset / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def generation(self, data_end: int | None = None) -> dict[str, Any]:
        target = self.path / "export"
        export_student(
            build_causal_lm(self.model, 0),
            target,
            student_folder=self.model,
            dataset=self.dataset,
            eos_token_id=data_end,
            metadata={},
        )
        GenerationConfig.from_pretrained(target)
        AutoConfig.from_pretrained(target)
        found: dict[str, Any] = json.loads((target / "generation_config.json").read_text())
        return found

    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "export" / "config.json").read_text())
        return found


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "gemma2", "mistral"])
def test_a_config_without_ids_gets_those_of_the_data_and_no_others(
    tmp_path: Path, model_type: str
) -> None:
    case = Case(tmp_path, model_type)
    case.write_data([5, 6, 0] * 9, eos_policy="after", eos_token_id=0)
    generation = case.generation()
    assert (generation["eos_token_id"], "bos_token_id" in generation) == (0, False)
    assert (case.config()["eos_token_id"], case.config()["bos_token_id"]) == (0, None)


def test_a_config_and_data_without_ids_give_none(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.write_data([5, 6, 7] * 9)
    assert "eos_token_id" not in case.generation()
    assert case.config()["eos_token_id"] is None


def test_ids_of_the_model_are_kept_if_the_tokenizer_has_them(tmp_path: Path) -> None:
    """Id 2 is an ordinary token of this tokenizer."""
    case = Case(tmp_path)
    (over,) = case.ids("</s>")
    ids = {"model_type": "llama", **SHAPE, "eos_token_id": [over, 2], "bos_token_id": 1}
    (case.model / "config.json").write_text(json.dumps(ids))
    case.write_data([5, 6, 0] * 9, eos_policy="after", eos_token_id=0)
    generation = case.generation()
    assert generation["eos_token_id"] == case.config()["eos_token_id"] == [0, over]
    assert "bos_token_id" not in generation


def test_ids_of_a_generation_config_are_the_models_own(tmp_path: Path) -> None:
    case = Case(tmp_path)
    begin, over = case.ids("<s>", "</s>")
    own = {"eos_token_id": [over], "bos_token_id": begin}
    (case.model / "generation_config.json").write_text(json.dumps(own))
    case.write_data([5, 6, 7] * 9)
    assert {name: case.generation()[name] for name in own} == {**own, "eos_token_id": over}


@pytest.mark.parametrize("content", ["chats", None])
def test_a_student_that_learnt_chats_stops_where_the_turns_stopped(
    tmp_path: Path, content: str | None
) -> None:
    """Most turns end in <|im_end|>, some in <|call|>; the end of the data is never learnt."""
    case = Case(tmp_path, eos_token_id=0)
    over, call = case.ids("<|im_end|>", "<|call|>")
    turn = [9, 9, 7, 8, over, 10]
    tokens = turn * 9 + [9, 9, 7, 8, call, 10] + [0]
    mask = [0, 0, 1, 1, 1, 0] * 10 + [0]
    manifest = {"eos_policy": "after", "eos_token_id": 0, "content": content}
    case.write_data(tokens, mask=mask, documents=[0], **manifest)
    assert case.generation()["eos_token_id"] == [over, call, 0]


def test_transformers_loads_each_of_the_ends(tmp_path: Path) -> None:
    case = Case(tmp_path)
    over, call = case.ids("<|im_end|>", "<|call|>")
    case.write_data([9, 8, over, 9, 8, call] * 20, mask=[0, 1, 1] * 40, content="chats")
    case.generation()
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert sorted(model.generation_config.eos_token_id) == sorted([over, call])


def test_a_turn_that_ends_a_chat_ends_at_the_next_chats_begin(tmp_path: Path) -> None:
    """Chats without a prompt: what is learnt of one follows what is learnt of the other."""
    case = Case(tmp_path)
    (over,) = case.ids("<|im_end|>")
    tokens = [7, 8, over] * 20
    starts = np.arange(20) * 3
    case.write_data(tokens, mask=[1] * 60, documents=starts, content="chats")
    assert case.generation()["eos_token_id"] == over


def test_an_answer_that_breaks_off_names_no_end(tmp_path: Path) -> None:
    case = Case(tmp_path)
    over, call = case.ids("<|im_end|>", "<|call|>")
    tokens = [9, 8, over] * 300 + [9, 8, call] + [9, 8, 8]
    case.write_data(tokens, mask=[0, 1, 1] * 302, content="chats")
    assert case.generation()["eos_token_id"] == over


def test_the_beginning_of_a_text_is_no_end_although_it_is_masked(tmp_path: Path) -> None:
    case = Case(tmp_path)
    begin, over = case.ids("<s>", "</s>")
    tokens = [begin, 5, over] * 20
    case.write_data(
        tokens,
        mask=[0, 1, 1] * 20,
        content="text",
        bos_policy="document",
        bos_token_id=begin,
        eos_policy="after",
        eos_token_id=over,
    )
    generation = case.generation()
    assert (generation["eos_token_id"], generation["bos_token_id"]) == (over, begin)
    metadata = json.loads((tmp_path / "export" / "distillation_metadata.json").read_text())
    assert (metadata["begins_texts_with"], metadata["ends_texts_with"]) == ([begin], [over])


def test_nothing_is_taken_away_if_no_tokenizer_is_known(tmp_path: Path) -> None:
    case = Case(tmp_path, eos_token_id=[7, 9], bos_token_id=3)
    edges = edges_of(build_causal_lm(case.model, 0), case.model, None, {})
    assert (edges.ends, edges.begins, edges.taught_begin) == ((7, 9), 3, None)
    files = read_tokenizer_files(case.dataset / "tokenizer.json")
    assert edges_of(build_causal_lm(case.model, 0), case.model, None, files).ends == ()
