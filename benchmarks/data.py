"""Times `lectern data prepare`: worker processes against the tokenizers library's threads.

Texts are source files of the standard library; chats have the same text as answers. Each turn runs
a whole `prepare`; only its tokenising is compared.
"""

import json
import os
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.goals import Row
from lectern_data.prepare import prepare
from lectern_data.read.rows import Content
from lectern_data.settings import PrepareSettings
from lectern_data.tokens.tokenizer import train_tokenizer

TURNS = 5
_VOCABULARY = 4096
_TEXT_BYTES = 8 << 20
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def measure() -> Iterator[Row]:
    """Yields a row for texts and one for chats; `speed_ratio` is processes over threads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = _texts()
        tokenizer = _tokenizer(folder / "tokenizer", texts)
        yield _row("texts", _text_rows(folder, texts), Content(), tokenizer, folder)
        chats = Content("messages", is_chat=True)
        yield _row("chats", _chat_rows(folder, texts), chats, tokenizer, folder)


def _row(what: str, rows: Path, content: Content, tokenizer: Path, folder: Path) -> Row:
    cores = len(os.sched_getaffinity(0))
    alone, together = [], []
    for _ in range(TURNS):
        alone.append(_seconds(rows, content, tokenizer, folder, workers=1))
        together.append(_seconds(rows, content, tokenizer, folder, workers=cores))
    pairs = zip(alone, together, strict=True)
    return {
        "what": f"data prepare, {what}",
        "workers": cores,
        "threads_mb_per_second": rows.stat().st_size / 1e6 / median(alone),
        "processes_mb_per_second": rows.stat().st_size / 1e6 / median(together),
        "speed_ratio": median(one / other for one, other in pairs),
        "goals": {"speed_ratio": ">= 1.0"},
    }


def _seconds(rows: Path, content: Content, tokenizer: Path, folder: Path, *, workers: int) -> float:
    """Returns the time from the end of reading to the end of tokenising."""
    moments: dict[str, float] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        moments[stage] = time.perf_counter()

    prepare(
        PrepareSettings(
            [rows],
            folder / "dataset",
            tokenizer=tokenizer,
            content=content,
            validation_fraction=0,
            max_fault_fraction=0.5,
            workers=workers,
            piece_bytes=1 << 20,
            force=True,
        ),
        on_progress=on_progress,
    )
    return moments["tokenizing"] - moments["reading"]


def _texts() -> list[str]:
    """Returns source files of the standard library, up to _TEXT_BYTES."""
    library, texts, size = Path(sysconfig.get_path("stdlib")), list[str](), 0
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts and size < _TEXT_BYTES:
            texts.append(path.read_text(errors="replace"))
            size += len(texts[-1])
    return texts


def _tokenizer(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    trained = train_tokenizer(texts[:200], _VOCABULARY)
    trained.tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    trained.tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"eos_token": "<|endoftext|>", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _text_rows(folder: Path, texts: list[str]) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def _chat_rows(folder: Path, texts: list[str]) -> Path:
    """Writes chats of four turns, the answers some 500 characters of the texts."""
    path = folder / "chats.jsonl"
    whole = "".join(texts)
    answers = [whole[first : first + 500] for first in range(0, len(whole) // 2, 500)]
    roles = ("user", "assistant")
    with path.open("w") as file:
        for first in range(0, len(answers) - 3, 4):
            turns = enumerate(answers[first : first + 4])
            messages = [{"role": roles[i % 2], "content": text} for i, text in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path
