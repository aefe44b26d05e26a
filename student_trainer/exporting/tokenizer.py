"""The tokenizer and chat template of an export, as a GGUF file holds them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lectern_common.errors import Incompatible, NotFound
from lectern_common.tokens.beginning import usual_beginning
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import (
    TEMPLATE_NAME,
    TEMPLATES_FOLDER,
    complete_tokenizer,
    named_tokens,
    read_tokenizer_files,
    tokenizer_config,
)
from student_trainer.exporting.vocabulary import Vocabulary, vocabulary_of
from student_trainer.student.export import METADATA_NAME

# llama.cpp stops at each: the end of a text, of a turn, of a message.
_END_KEYS = ("eos", "eot", "eom")
_NAMED = ("unk", "pad")


@dataclass(frozen=True)
class GgufTokenizer:
    """What a GGUF file says of a model's tokenizer.

    Attributes:
        vocabulary: its tokens, and how texts are cut into them.
        begins: the id that begins a text; None means none.
        adds_begin: it is put before each text.
        ends: ids that end a text or a turn.
        named: "unk" and "pad" -> id.
        templates: name -> chat template; the usual one is "default".
    """

    vocabulary: Vocabulary
    begins: int | None
    adds_begin: bool
    ends: list[int]
    named: dict[str, int]
    templates: dict[str, str]

    def add_to(self, writer: Any) -> None:
        """Writes it by a gguf.GGUFWriter."""
        vocabulary = self.vocabulary
        writer.add_tokenizer_model(vocabulary.model)
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_list(vocabulary.tokens)
        writer.add_token_types(vocabulary.types)
        if vocabulary.model == "gpt2":
            writer.add_token_merges(vocabulary.merges)
        else:
            writer.add_token_scores(vocabulary.scores)
            writer.add_add_space_prefix(vocabulary.adds_space)
        if self.begins is not None:
            writer.add_bos_token_id(self.begins)
        writer.add_add_bos_token(self.adds_begin)
        writer.add_add_eos_token(False)
        for key, token_id in zip(_END_KEYS, self.ends, strict=False):
            getattr(writer, f"add_{key}_token_id")(token_id)
        for key, token_id in self.named.items():
            getattr(writer, f"add_{key}_token_id")(token_id)
        if self.templates:
            listed = [{"name": name, "template": text} for name, text in self.templates.items()]
            writer.add_chat_template(listed)


def tokenizer_of(folder: Path, vocab_size: int) -> GgufTokenizer:
    """Returns the tokenizer of an export: what training has taught about beginnings and ends comes
    before the tokenizer's habits.

    Raises:
        NotFound: the folder has no tokenizer.json.
        Incompatible: llama.cpp would cut some text otherwise.
    """
    try:
        files = read_tokenizer_files(folder / TOKENIZER_NAME)
    except NotFound:
        raise NotFound(
            f"{folder} has no {TOKENIZER_NAME}, which a GGUF file is made of; train on data whose "
            "tokenizer has one, or export with --format safetensors"
        ) from None
    tokenizer, _ = complete_tokenizer(files, TOKENIZER_NAME)
    named = {
        name: token_id
        for name, token in named_tokens(files).items()
        if (token_id := tokenizer.token_to_id(token.text)) is not None
    }
    before = _before(folder, usual_beginning(tokenizer, files))
    generation = _json(folder / "generation_config.json")
    known = generation.get("bos_token_id", named.get("bos_token"))
    ends = generation.get("eos_token_id", named.get("eos_token"))
    return GgufTokenizer(
        vocabulary=vocabulary_of(json.loads(tokenizer.to_str()), vocab_size),
        begins=before[0] if before else known,
        adds_begin=bool(before),
        ends=ends if isinstance(ends, list) else [] if ends is None else [ends],
        named={name: named[f"{name}_token"] for name in _NAMED if f"{name}_token" in named},
        templates=_chat_templates(files),
    )


def _before(folder: Path, usual: Any) -> list[int]:
    taught = _json(folder / METADATA_NAME).get("begins_texts_with")
    before = list(taught) if taught is not None else list(usual.token_ids if usual else ())
    if len(before) > 1:
        raise Incompatible(
            f"the student's tokenizer puts {len(before)} tokens before a text, and llama.cpp one; "
            "export the student with --format safetensors"
        )
    return before


def _chat_templates(files: Mapping[str, bytes]) -> dict[str, str]:
    listed = tokenizer_config(files).get("chat_template")
    found: dict[str, str] = {}
    if isinstance(listed, str):
        found["default"] = listed
    elif isinstance(listed, list):
        found |= {str(one["name"]): str(one["template"]) for one in listed}
    for name, content in files.items():
        if name.startswith(f"{TEMPLATES_FOLDER}/"):
            found[Path(name).stem] = content.decode()
    if TEMPLATE_NAME in files:
        found["default"] = files[TEMPLATE_NAME].decode()
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
