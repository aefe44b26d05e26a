"""GGUF files, loaded by llama.cpp itself and by transformers."""

import pytest
from tokenizers import Tokenizer

from student_trainer.exporting.gguf_export import write_gguf
from tests.support.llama_cpp import MARGINS, compared, continued, model_of_file
from tests.support.models import write_tiny_model

PROMPTS = [
    "def add(first, second):",
    "  for student in\n\n\tstudents:",
    "the quick brown fox's 1234 legs",
    "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e \U0001f642",
    "import os   # 3.14, 1,000,000",
]
TOKENS = 24
# Rows of 32 numbers, or of no multiple of it, which q8_0 cannot store.
SHAPES = {"rows of whole blocks": 32, "odd rows": 48}


@pytest.mark.parametrize("gguf_type", ["f16", "q8_0"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma2"])
def test_llama_cpp_continues_texts_as_transformers_does(tmp_path, architecture, gguf_type):
    folder = write_tiny_model(
        tmp_path / "model", architecture, vocab_size=300, tokenizer=True, layers=3
    )
    path = tmp_path / "model.gguf"
    write_gguf(folder, path, gguf_type, name="model")
    answers, _ = continued(path, PROMPTS, TOKENS)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [answer.ids for answer in answers] == [tokenizer.encode(text).ids for text in PROMPTS]
    model = model_of_file(folder, path, gguf_type)
    clear = sum(compared(model, answer, MARGINS[gguf_type]) for answer in answers)
    assert clear > len(PROMPTS) * TOKENS / 3
