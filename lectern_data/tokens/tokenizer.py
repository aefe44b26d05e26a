"""Trains or loads the tokenizer of a dataset, with its config and chat template.

Training is deterministic: the same texts in the same order give the same tokenizer.json, byte for
byte.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split
from tokenizers.trainers import BpeTrainer

from lectern_common.errors import CorruptData, InvalidRequest, LecternError, NotFound
from lectern_common.tokens.beginning import Beginning, named_beginning, usual_beginning
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import (
    CONFIG_NAME,
    SPECIAL_NAMES,
    TEMPLATE_JSON_NAME,
    TEMPLATE_NAME,
    TEMPLATES_FOLDER,
    complete_tokenizer,
    named_tokens,
    read_tokenizer_files,
    tokenizer_config,
    vocabulary_files,
)
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.tokens.document_end import DocumentEnd, document_end

DEFAULT_EOS_TOKEN = "<|endoftext|>"  # noqa: S105 - a text token, not a password
MIN_TRAINED_VOCABULARY = 257  # every byte and the end-of-text token
# How transformers splits a text for `qwen2`, whatever tokenizer.json says: for that type alone of
# those that Lectern knows it builds the pre-tokenizer anew. Other types read it from the file.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Changes whenever the same texts give another tokenizer.
TRAINED_AS = "2"


@dataclass(frozen=True)
class DatasetTokenizer:
    """A tokenizer with the files that describe it.

    Attributes:
        tokenizer: with the tokens of all its files.
        files: name -> content; tokenizer.json holds all tokens.
        end: the token that ends a document; None if nothing names one.
    """

    tokenizer: Tokenizer
    files: dict[str, bytes]
    end: DocumentEnd | None

    @property
    def tokenizer_json(self) -> bytes:
        """The content of tokenizer.json."""
        return self.files[TOKENIZER_NAME]

    @property
    def eos_token_id(self) -> int | None:
        """The id of `end`."""
        return None if self.end is None else self.end.token_id

    @property
    def chat_template(self) -> str | None:
        """The chat template from its own file, else the config's default one."""
        return _chat_template(self.files)

    @property
    def tool_template(self) -> str | None:
        """The chat template for chats with tools, if there is one of its own for them."""
        return _chat_template(self.files, "tool_use")

    @property
    def special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, ... from the files: the names that a chat template may use."""
        return {name: token.text for name, token in named_tokens(self.files).items()}

    @cached_property
    def beginning(self) -> Beginning | None:
        """What the tokenizer usually puts before a text; None means nothing."""
        return usual_beginning(self.tokenizer, self.files)

    @property
    def named_beginning(self) -> int | None:
        """The id of its bos_token; None if it names none."""
        return named_beginning(self.tokenizer, self.files)

    @property
    def tokens(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return dict(self.tokenizer.get_vocab(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; ids may have gaps."""
        return max(self.tokens.values()) + 1


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, eos_token: str | None = None
) -> DatasetTokenizer:
    """Returns a byte-level BPE tokenizer of at most `vocab_size` tokens.

    It can encode any text, and decoding returns that text. A small corpus gives fewer tokens.

    Raises:
        InvalidRequest: vocab_size is too small for every byte and the end-of-text token.
    """
    if vocab_size < MIN_TRAINED_VOCABULARY:
        raise InvalidRequest(
            f"a vocabulary of {vocab_size} is too small: every byte and the end-of-text token "
            f"need {MIN_TRAINED_VOCABULARY}",
            field="train_tokenizer",
        )
    eos_token = eos_token or DEFAULT_EOS_TOKEN
    tokenizer = Tokenizer(BPE())
    split: PreTokenizer = Split(Regex(_SPLIT), "isolated")
    tokenizer.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eos_token],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Without a class, transformers would build that of the model's type with its own pre-tokenizer;
    # without the nulls, that class would add tokens of its own.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **dict.fromkeys(SPECIAL_NAMES)}
    files = {
        TOKENIZER_NAME: tokenizer.to_str(pretty=True).encode() + b"\n",
        CONFIG_NAME: json.dumps({**config, "eos_token": eos_token}, indent=2).encode() + b"\n",
    }
    return _loaded(files, Path(TOKENIZER_NAME), None)


def load_tokenizer(
    path: Path, eos_token: str | None = None, *, is_chat: bool = False
) -> DatasetTokenizer:
    """Returns the tokenizer of a tokenizer.json, or of a model folder that holds one.

    Args:
        path: the file or the folder.
        eos_token: the token that ends a document; None means that of the tokenizer, as
            document_end.py chooses it.
        is_chat: documents are chats.

    Raises:
        NotFound: there is no such file.
        CorruptData: it is not a tokenizer.json, or the files beside it are broken or contradict it.
        InvalidRequest: the tokenizer does not have the token that ends a document.
    """
    file = path / TOKENIZER_NAME if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"no tokenizer at {file}; {_what_to_name(file.parent)}")
    return _loaded(read_tokenizer_files(file), file, eos_token, is_chat=is_chat)


def _loaded(
    files: dict[str, bytes], file: Path, eos_token: str | None, *, is_chat: bool = False
) -> DatasetTokenizer:
    tokenizer, has_more = complete_tokenizer(files, str(file))
    if has_more:
        files = {**files, TOKENIZER_NAME: tokenizer.to_str(pretty=True).encode() + b"\n"}
    try:
        source = _chat_template(files)
    except ValueError:
        raise CorruptData(f"the files beside {file} are not a valid chat template") from None
    named = named_tokens(files)
    template = _readable(source, {name: token.text for name, token in named.items()})
    end = document_end(tokenizer, named.get("eos_token"), eos_token, template, is_chat=is_chat)
    return DatasetTokenizer(tokenizer, files, end)


def _readable(source: str | None, special_tokens: dict[str, str]) -> ChatTemplate | None:
    """Returns the template; None if it is not one, which only chats need to know."""
    try:
        return None if source is None else ChatTemplate(source, special_tokens)
    except LecternError:
        return None


def _chat_template(files: dict[str, bytes], name: str = "default") -> str | None:
    """Returns the chat template of a name, from the first place that has it. Raises ValueError."""
    file = TEMPLATE_NAME if name == "default" else f"{TEMPLATES_FOLDER}/{name}.jinja"
    if file in files:
        return files[file].decode()
    entry = tokenizer_config(files).get("chat_template")
    if TEMPLATE_NAME in files:  # files of their own replace what the config has
        return None
    if entry is None and TEMPLATE_JSON_NAME in files:
        entry = json.loads(files[TEMPLATE_JSON_NAME])
        entry = entry.get("chat_template") if isinstance(entry, dict) else None
    if isinstance(entry, list):  # several, by name
        entry = {one.get("name"): one.get("template") for one in entry if isinstance(one, dict)}
    if isinstance(entry, dict):
        entry = entry.get(name)
    elif name != "default":
        return None
    return entry if isinstance(entry, str) else None


def _what_to_name(folder: Path) -> str:
    """Returns what to do about a folder without a tokenizer.json."""
    others = vocabulary_files(folder)
    if not others:
        return "name a tokenizer.json, or a folder with one"
    return (
        f"the folder has {', '.join(others)}, which transformers converts: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER), then name OTHER"
    )
