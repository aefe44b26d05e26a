"""Datasets and models under the roots."""

import json

import numpy as np
from safetensors.numpy import save_file

from control_plane.reading.catalog import datasets, models

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
