"""Trains or loads the tokenizer of a dataset, with its config and chat template.

Training is deterministic: the same texts in the same order give the same tokenizer.json, byte for
byte.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from lectern_common.errors import CorruptData, InvalidRequest, NotFound
from lectern_common.tokens.shards import TOKENIZER_NAME

CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
DEFAULT_EOS_TOKEN = "<|endoftext|>"  # noqa: S105 - a text token, not a password
MIN_TRAINED_VOCABULARY = 257  # every byte and the end-of-text token
_SPECIAL_TOKENS = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)


@dataclass(frozen=True)
class DatasetTokenizer:
    """A tokenizer with the files that describe it.

    Attributes:
        tokenizer: loaded from tokenizer_json.
        tokenizer_json, config_json, template_jinja: the files' content; None if missing.
        eos_token_id: None if neither the tokenizer nor the caller names an end-of-text token.
    """

    tokenizer: Tokenizer
    tokenizer_json: bytes
    config_json: bytes | None
    template_jinja: bytes | None
    eos_token_id: int | None

    @property
    def files(self) -> dict[str, bytes]:
        """File name -> content of the existing files."""
        files = {
            TOKENIZER_NAME: self.tokenizer_json,
            CONFIG_NAME: self.config_json,
            TEMPLATE_NAME: self.template_jinja,
        }
        return {name: content for name, content in files.items() if content is not None}

    @property
    def chat_template(self) -> str | None:
        """The chat template from its own file, else the config's default one."""
        return self._template("default")

    @property
    def tool_template(self) -> str | None:
        """The chat template for chats with tools, if the config has one of its own for them."""
        return self._template("tool_use")

    def _template(self, name: str) -> str | None:
        entry = _config(self.config_json).get("chat_template")
        if self.template_jinja is not None:
            entry = self.template_jinja.decode()
        if isinstance(entry, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in entry if isinstance(one, dict)}
            entry = named.get(name)
        elif name != "default":
            return None
        return entry if isinstance(entry, str) else None

    @property
    def special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, ... from the config: the names that a chat template may use."""
        found = {
            name: _token_text(value)
            for name, value in _config(self.config_json).items()
            if name in _SPECIAL_TOKENS
        }
        return {name: text for name, text in found.items() if text is not None}

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
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eos_token],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Without this, transformers would build the tokenizer class of the model's type with its own
    # pre-tokenizer, instead of reading tokenizer.json.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos_token}
    files = {
        TOKENIZER_NAME: tokenizer.to_str(pretty=True).encode() + b"\n",
        CONFIG_NAME: json.dumps(config, indent=2).encode() + b"\n",
    }
    return _ready(tokenizer, files, eos_token)


def load_tokenizer(path: Path, eos_token: str | None = None) -> DatasetTokenizer:
    """Returns the tokenizer of a tokenizer.json, or of a model folder that holds one.

    The end-of-text token is `eos_token`, else the one in the tokenizer_config.json beside it.

    Raises:
        NotFound: there is no such file.
        CorruptData: it is not a tokenizer.json.
        InvalidRequest: the tokenizer does not have the token `eos_token`.
    """
    file = path / TOKENIZER_NAME if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"no tokenizer at {file}; name a tokenizer.json, or a folder with one")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise CorruptData(f"{file} is not a tokenizer.json: {error}") from None
    beside = (CONFIG_NAME, TEMPLATE_NAME)
    files = {TOKENIZER_NAME: file.read_bytes()} | {
        name: file.with_name(name).read_bytes() for name in beside if file.with_name(name).is_file()
    }
    try:
        config = _config(files.get(CONFIG_NAME))
        files.get(TEMPLATE_NAME, b"").decode()
    except ValueError:
        why = f"the files beside {file} are not a valid tokenizer config and chat template"
        raise CorruptData(why) from None
    if eos_token is None:
        eos_token = _token_text(config.get("eos_token"))
    return _ready(tokenizer, files, eos_token)


def _ready(
    tokenizer: Tokenizer, files: dict[str, bytes], eos_token: str | None
) -> DatasetTokenizer:
    eos_token_id = None
    if eos_token is not None:
        eos_token_id = tokenizer.token_to_id(eos_token)
        if eos_token_id is None:
            why = f"this tokenizer has no token {eos_token!r}; set --eos-token to one that it has"
            raise InvalidRequest(why, field="eos_token")
    return DatasetTokenizer(
        tokenizer,
        files[TOKENIZER_NAME],
        files.get(CONFIG_NAME),
        files.get(TEMPLATE_NAME),
        eos_token_id,
    )


def _config(config_json: bytes | None) -> dict[str, Any]:
    """Returns tokenizer_config.json, {} if there is none. Raises ValueError."""
    config = {} if config_json is None else json.loads(config_json)
    if not isinstance(config, dict):
        raise ValueError("not a mapping")
    return config


def _token_text(entry: Any) -> str | None:
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None
