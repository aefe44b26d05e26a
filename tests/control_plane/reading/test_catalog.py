"""Datasets, records and models under the roots."""

import json

import numpy as np
from safetensors.numpy import save_file

from control_plane.reading.catalog import datasets, models, records
from lectern_common.checks.rules import why_no_dataset, why_no_prompt_set

MANIFEST = {
    "schema": "pretokenize-bin-v1",
    "tokenizer_sha256": "a" * 64,
    "corpus_sha256": "b" * 64,
    "shard_count": 1,
    "total_tokens": 1000,
    "vocab_size": 300,
    "eos_policy": "none",
    "eos_token_id": None,
    "seq_length_hint": 128,
    "producer_version": "test",
    "producer_sha256": "",
}


def test_datasets_are_the_folders_with_a_manifest(tmp_path):
    for path, text in (
        ("code/python", json.dumps(MANIFEST)),
        ("broken", "{"),
        (".hidden", json.dumps(MANIFEST)),
    ):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "manifest.json").write_text(text)
    (tmp_path / "empty").mkdir()
    broken, good = datasets(tmp_path)
    assert (good.path, good.total_tokens, good.seq_length_hint) == ("code/python", 1000, 128)
    assert good.problem is None
    assert (broken.path, broken.total_tokens) == ("broken", None)
    assert broken.problem and "manifest.json" in broken.problem


def test_a_prompt_set_is_listed_as_one_and_not_offered_where_a_dataset_is_missing(tmp_path):
    counted = {"document_count": 7, "documents_sha256": "c" * 64}
    for path, more in (
        ("chats", {"content": "chats", **counted}),
        ("old-chats", {"mask_sha256": "d" * 64}),
        ("old-text", {}),
        ("prompts", {"content": "prompts", **counted}),
    ):
        (tmp_path / path).mkdir()
        (tmp_path / path / "manifest.json").write_text(json.dumps(MANIFEST | more))
    found = {view.path: (view.holds, view.document_count) for view in datasets(tmp_path)}
    assert found == {
        "chats": ("chats", 7),
        "old-chats": ("chats", None),
        "old-text": ("text", None),
        "prompts": ("prompts", 7),
    }
    missing = tmp_path / "absent"
    there = "there are: chats, old-chats, old-text"
    assert why_no_dataset(tmp_path, "absent", missing).endswith(there)
    assert why_no_prompt_set(tmp_path, "absent", missing).endswith("there are: prompts")
    assert "not a prompt set" in why_no_prompt_set(tmp_path, ".", tmp_path)


def test_records_are_listed_by_themselves_and_not_as_datasets(tmp_path):
    part = {
        "name": "training",
        "format": {"name": "top_k", "top_k": 8, "log_prob_bits": 16},
        "temperature": 2,
        "sequences": 3,
        "rows": 24,
    }
    names = ["teacher.binpb", "tokenizer_map.json"]
    names += [f"training/{name}.bin" for name in ("rows", "masks", "index")]
    files = [{"path": name, "bytes": 2, "sha256": "a" * 64} for name in names]
    contexts = {
        "data_path": "text",
        "data_sha256s": ["b" * 64],
        "seq_len": 8,
        "attention_across_documents": True,
        "packs_chats": False,
    }
    manifest = {
        "schema": "lectern-record-v1",
        "model_id": "big",
        "fingerprint": "c" * 64,
        "weights_sha256": "",
        "tokenizer_sha256": "",
        "vocab_size": 300,
        "hidden_size": 32,
        "hidden_dtype": "bfloat16",
        "contexts": contexts,
        "producer_version": "test",
        "parts": [part],
        "files": files,
    }
    for path, text in (
        ("a/answers", json.dumps(manifest)),
        ("cut", json.dumps(manifest)),
        ("later", json.dumps({"schema": "lectern-record-v2"})),
        ("text", json.dumps(MANIFEST)),
        (".half.recording/record", json.dumps(manifest)),
    ):
        folder = tmp_path / path
        (folder / "training").mkdir(parents=True)
        (folder / "manifest.json").write_text(text)
        for name in names[1 if path == "cut" else 0 :]:
            (folder / name).write_text("xy")
    assert [dataset.path for dataset in datasets(tmp_path)] == ["text"]
    good, cut, later = records(tmp_path)
    assert (good.path, good.problem, good.model, good.bytes) == ("a/answers", None, "big", 10)
    assert good.holds == ["top_k 8 at temperature 2"]
    assert (good.data_path, good.seq_len, good.vocab_size) == ("text", 8, 300)
    assert (cut.path, cut.model) == ("cut", None)
    assert cut.problem and "teacher.binpb" in cut.problem
    assert later.problem and "lectern-record-v1" in later.problem
    assert "there are: text" in why_no_dataset(tmp_path, "nothing", tmp_path / "nothing")


def test_models_are_the_folders_with_a_config(tmp_path):
    for path, text in (
        ("a/trained", '{"architectures": ["Qwen2ForCausalLM"], "vocab_size": 300}'),
        ("b-config", '{"model_type": "qwen2", "vocab_size": 10}'),
        ("c-broken", "[1]"),
    ):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "config.json").write_text(text)
    save_file({"w": np.zeros(4, np.float32)}, tmp_path / "a/trained/model.safetensors")
    (tmp_path / "a/trained/tokenizer.json").write_text("{}")
    trained, config, broken = models(tmp_path)
    assert (trained.path, trained.architecture) == ("a/trained", "Qwen2ForCausalLM")
    assert (trained.has_weights, trained.has_tokenizer) == (True, True)
    assert trained.weights_bytes == (tmp_path / "a/trained/model.safetensors").stat().st_size
    assert (config.architecture, config.vocab_size, config.has_weights) == ("qwen2", 10, False)
    assert broken.problem and "config.json" in broken.problem


def test_roots_that_do_not_exist_hold_nothing(tmp_path):
    assert datasets(tmp_path / "none") == []
    assert models(tmp_path / "none") == []
