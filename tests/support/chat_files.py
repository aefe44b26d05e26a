"""Chat templates, a tokenizer with control tokens, and files of chats, for tests."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from lectern_data.tokens.tokenizer import train_tokenizer

CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
MARKED = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if loop.index0 > 9 %}{% break %}{% endif %}"
    "{% if message.role == 'assistant' %}"
    "A: {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}\n"
    "{% else %}{{ message | tojson }}\n{% endif %}"
    "{% endfor %}"
)


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the control tokens."""
    trained = train_tokenizer(["nothing"], 257).tokenizer
    tokens = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    trained.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    return trained


def chats_with_tokenizer(folder: Path, template: str | None = CHATML) -> tuple[Path, Path]:
    """Twelve chats in a .jsonl file, and a tokenizer; the sixth has a call that is not rendered."""
    folder.mkdir()
    rows = []
    for number in range(12):
        turns = [("user", f"Question {number}."), ("assistant", f"Answer {number}.")]
        messages: list[Any] = [{"role": role, "content": content} for role, content in turns]
        if number == 5:
            messages[1]["tool_calls"] = [{"function": {"name": "look_up", "arguments": {}}}]
        rows.append(json.dumps({"messages": messages}))
    (folder / "chats.jsonl").write_text("\n".join(rows))
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    byte_tokenizer().save(str(tokenizer / "tokenizer.json"))
    config: dict[str, Any] = {"eos_token": {"content": "</s>"}}
    if template is not None:
        config["chat_template"] = [{"name": "default", "template": template}]
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "chats.jsonl", tokenizer
