"""GGUF files, loaded by llama.cpp itself and by transformers.

`make llama-cpp` installs llama.cpp; without it, the tests that need it say so.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from lectern_common.errors import CorruptData, Incompatible, NotFound
from lectern_common.stages.export import GgufType
from lectern_models.gguf_file import GgufFile
from lectern_models.loading import load_causal_lm
from student_trainer.exporting import gguf_export
from student_trainer.exporting.gguf_export import WEIGHTS_KEY, string_of, write_gguf
from student_trainer.stop import Stop, StopRequested
from tests.support.llama_cpp import MARGINS, Job, asked, compared, model_of_file
from tests.support.models import write_tiny_model

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2")
TYPES: tuple[GgufType, ...] = ("f16", "q8_0")
PROMPTS = [
    "def add(first, second):",
    "  for student in\n\n\tstudents:",
    "the quick brown fox's 1234 legs",
    "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e \U0001f642",
    "import os   # 3.14, 1,000,000",
]
TOKENS = 24
# Share of tokens that are clearly the best, so that something is compared.
FEWEST_CLEAR = {"f16": 0.6, "q8_0": 0.2}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def student(folder: Path, architecture: str, **settings: Any) -> Path:
    """Writes a model whose norms and biases are not all the same, and with wide logits."""
    plain = {"vocab_size": 300, "layers": 3, "spread": 0.2, "tokenizer": True}
    write_tiny_model(folder, architecture, **{**plain, **settings})
    path = folder / "model.safetensors"
    draw = torch.Generator().manual_seed(1)
    tensors = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=draw) * (tensor.ndim == 1)
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
    return folder


def require_continued(folder: Path, types: tuple[GgufType, ...] = TYPES, tokens: int = TOKENS):
    """Asserts that llama.cpp continues the texts as transformers does with the file's numbers."""
    paths = {one: folder / f"{one}.gguf" for one in types}
    for gguf_type, path in paths.items():
        write_gguf(folder, path, gguf_type, name="student")
    answers = asked(*(Job(path, PROMPTS, tokens) for path in paths.values()))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for gguf_type, answer in zip(types, answers, strict=True):
        assert answer.ids == [tokenizer.encode(text).ids for text in PROMPTS]
        model = model_of_file(folder, paths[gguf_type], gguf_type)
        clear = sum(compared(model, one, MARGINS[gguf_type]) for one in answer.continuations)
        assert clear > len(PROMPTS) * tokens * FEWEST_CLEAR[gguf_type]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_llama_cpp_continues_texts_as_transformers_does(tmp_path, architecture):
    require_continued(student(tmp_path / "student", architecture))


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 1}),
        ("llama", {"tied": True, "hidden": 48}),
        ("qwen2", {"tied": True, "hidden": 48}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("qwen3", {"head_dim": 16, "tied": False}),
        ("gemma2", {"sliding_window": 8}),
        ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "hidden": 48}),
    ],
    ids=str,
)
def test_llama_cpp_agrees_for_other_shapes(tmp_path, architecture, settings):
    require_continued(student(tmp_path / "student", architecture, **settings), tokens=48)


def test_llama_cpp_agrees_where_rotary_frequencies_are_scaled(tmp_path):
    folder = student(tmp_path / "student", "llama", rope_parameters=LLAMA_3_ROPE)
    require_continued(folder, ("f16",), 64)


@pytest.mark.parametrize("gguf_type", TYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_loads_the_file_with_the_numbers_that_it_was_given(
    tmp_path, architecture, gguf_type
):
    # transformers takes these for granted, where llama.cpp reads the size of heads.
    settings = {"qwen3": {"head_dim": 128}, "gemma2": {"head_dim": 256}}.get(architecture, {})
    if architecture == "gemma2":
        settings["query_pre_attn_scalar"] = 256
    folder = student(tmp_path / "student", architecture, **settings)
    write_gguf(folder, folder / "student.gguf", gguf_type, name="student")
    loaded = load_causal_lm(folder, "float32", gguf_file="student.gguf")
    reference = model_of_file(folder, folder / "student.gguf", gguf_type)
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, reference(ids).logits, rtol=1e-5, atol=1e-4)


def test_f16_rounds_each_number_to_16_bits_and_q8_0_to_127_steps_of_its_block(tmp_path):
    folder = student(tmp_path / "student", "qwen2")
    tensor = "model.layers.0.mlp.up_proj.weight"
    values = load_file(folder / "model.safetensors")[tensor]
    for gguf_type in TYPES:
        write_gguf(folder, folder / "student.gguf", gguf_type, name="student")
        held = model_of_file(folder, folder / "student.gguf", gguf_type).state_dict()[tensor]
        if gguf_type == "f16":
            assert torch.equal(held, values.half().float())
        else:
            step = values.reshape(-1, 32).abs().amax(1, keepdim=True) / 127
            error = (held - values).reshape(-1, 32).abs()
            assert (error <= 0.6 * step).all()  # the step itself is rounded to 16 bits
            assert error.max() > 0.3 * step.min()


def test_rows_of_no_whole_blocks_stay_in_f16(tmp_path):
    folder = student(tmp_path / "student", "qwen2", hidden=48, layers=1)
    written = write_gguf(folder, folder / "student.gguf", "q8_0", name="student")
    # Rows are 48 long, except those of down_proj: 96.
    assert "model.layers.0.mlp.up_proj.weight" in written.kept_f16
    assert "model.embed_tokens.weight" in written.kept_f16
    assert "model.layers.0.mlp.down_proj.weight" not in written.kept_f16


def test_the_file_says_whose_weights_it_holds_and_has_the_chat_template(tmp_path):
    folder = student(tmp_path / "student", "qwen3", layers=1)
    template = (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    path = tmp_path / "student.gguf"
    write_gguf(folder, path, "f16", name="a student")
    assert string_of(path, "general.name") == "a student"
    assert len(string_of(path, WEIGHTS_KEY) or "") == 64
    assert string_of(path, "tokenizer.chat_template") == template
    [answer] = asked(Job(path, ["x"]))
    assert answer.chat_template == template


@pytest.mark.parametrize("taught", [None, [], [5]])
def test_what_training_taught_about_beginnings_comes_before_the_tokenizers_habit(tmp_path, taught):
    folder = student(tmp_path / "student", "llama", layers=1)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    habit = {"add_bos_token": True, "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | habit))
    facts = {} if taught is None else {"begins_texts_with": taught}
    (folder / "distillation_metadata.json").write_text(json.dumps(facts))
    generation = {"eos_token_id": [7, 9, 11]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    write_gguf(folder, folder / "student.gguf", "f16", name="student")
    before = GgufFile(folder / "student.gguf").tokens_before_text
    assert before == ((0,) if taught is None else tuple(taught))
    ends = [string_of(folder / "student.gguf", f"tokenizer.ggml.{key}_token_id") for key in
            ("eos", "eot", "eom")]  # fmt: skip
    assert ends == ["7", "9", "11"]


@pytest.mark.parametrize(
    ("architecture", "settings", "named"),
    [
        ("gpt2", {}, "of type gpt2"),
        ("olmo2", {}, "of type olmo2"),
        ("llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "use_sliding_window",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type linear",
        ),
        ("qwen2", {"rope_parameters": LLAMA_3_ROPE}, "rope_type llama3"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar 16"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping"),
        ("gemma2", {"tied": False}, "tie_word_embeddings"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "layer_types"),
    ],
    ids=str,
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_by_name(
    tmp_path, architecture, settings, named
):
    folder = write_tiny_model(
        tmp_path / "student", architecture, vocab_size=300, tokenizer=True, **settings
    )
    with pytest.raises(Incompatible, match=named) as refused:
        write_gguf(folder, folder / "student.gguf", "f16", name="student")
    assert "--format safetensors" in str(refused.value)
    assert not (folder / "student.gguf").exists()


@pytest.mark.parametrize(
    ("value", "gguf_type"),
    [(1e5, "f16"), (float("nan"), "f16"), (1e7, "q8_0"), (float("inf"), "q8_0")],
)
def test_a_number_that_16_bits_cannot_hold_is_refused(tmp_path, value, gguf_type):
    folder = student(tmp_path / "student", "qwen2", layers=1)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(Incompatible, match=r"layers\.0\.mlp\.up_proj"):
        write_gguf(folder, folder / "student.gguf", gguf_type, name="student")
    assert [one.name for one in folder.glob("*.gguf*")] == []


def test_a_tensor_that_llama_cpp_does_not_know_is_refused(tmp_path):
    folder = student(tmp_path / "student", "qwen2", layers=1)
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"model.layers.0.extra.weight": torch.ones(2)}, path)
    with pytest.raises(Incompatible, match=r"model\.layers\.0\.extra\.weight"):
        write_gguf(folder, folder / "student.gguf", "f16", name="student")


def test_a_student_without_a_tokenizer_is_refused(tmp_path):
    folder = write_tiny_model(tmp_path / "student", "qwen2")
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        write_gguf(folder, folder / "student.gguf", "f16", name="student")


def test_a_file_that_does_not_hold_what_was_written_is_refused(tmp_path, monkeypatch):
    folder = student(tmp_path / "student", "qwen2", layers=1)
    stored_tensors = gguf_export.stored_tensors

    def one_bit_flipped(path: Path) -> dict[str, np.ndarray]:
        stored = stored_tensors(path)
        flipped = stored["blk.0.ffn_up.weight"].copy()
        flipped.view(np.uint16)[1, 2] ^= 1 << 12
        return {**stored, "blk.0.ffn_up.weight": flipped}

    monkeypatch.setattr(gguf_export, "stored_tensors", one_bit_flipped)
    with pytest.raises(CorruptData, match="up_proj"):
        write_gguf(folder, folder / "student.gguf", "f16", name="student")
    assert [one.name for one in folder.glob("*.gguf*")] == []


def test_a_stop_leaves_no_file_and_progress_counts_tensors_twice(tmp_path):
    folder = student(tmp_path / "student", "qwen2", layers=1)
    stop, seen = Stop(), []

    def report(what: str, done: int, of: int) -> None:
        seen.append((what, done, of))
        if done == 5:
            stop.request()

    with pytest.raises(StopRequested):
        write_gguf(folder, folder / "a.gguf", "f16", name="a", check=stop.check, report=report)
    assert [one.name for one in folder.glob("*a.gguf*")] == []
    seen.clear()
    write_gguf(folder, folder / "a.gguf", "f16", name="a", report=lambda *said: seen.append(said))
    total = seen[-1][2]
    assert seen == [("tensors", done, total) for done in range(total + 1)]


def test_the_same_student_gives_the_same_bytes(tmp_path):
    folder = student(tmp_path / "student", "llama", layers=1)
    first = write_gguf(folder, folder / "a.gguf", "q8_0", name="student")
    again = write_gguf(folder, folder / "b.gguf", "q8_0", name="student")
    assert first.sha256 == again.sha256
    assert (folder / "a.gguf").stat().st_size == first.num_bytes
