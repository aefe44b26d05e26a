"""The tokenizer of a dataset: trained here, or given; and how it turns documents into ids.

Training is deterministic: the same texts in the same order give the same tokenizer.json, byte for
byte.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from lectern_common.errors import CorruptData, InvalidRequest, NotFound
from lectern_common.shards import TOKENIZER_NAME

CONFIG_NAME = "tokenizer_config.json"
DEFAULT_EOS_TOKEN = "<|endoftext|>"  # noqa: S105 - a token of text, no password
MIN_TRAINED_VOCABULARY = 257  # every byte and the end-of-text token
_BATCH_BYTES = 4 << 20


@dataclass(frozen=True)
class DatasetTokenizer:
    """A tokenizer with the files that describe it.

    `eos_token_id` is None where the tokenizer has no end-of-text token, or none was named.
    """

    tokenizer: Tokenizer
    tokenizer_json: bytes
    config_json: bytes | None
    eos_token_id: int | None

    @property
    def tokens(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return dict(self.tokenizer.get_vocab(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; ids may have gaps."""
        return max(self.tokens.values()) + 1

    def encode(self, texts: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
        """Yields the ids of each text, in order.

        A special token's spelling inside a text is encoded as the characters it is made of: no
        document can end itself. No token is added, cut off or padded.
        """
        pending = iter(texts)
        while batch := list(_batch(pending)):
            for encoding in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=np.uint32)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, eos_token: str | None = None
) -> DatasetTokenizer:
    """Returns a byte-level BPE tokenizer of at most `vocab_size` tokens.

    Every text is representable and decodes to itself. A small corpus gives fewer tokens.

    Raises:
        InvalidRequest: vocab_size cannot hold every byte and the end-of-text token.
    """
    if vocab_size < MIN_TRAINED_VOCABULARY:
        raise InvalidRequest(
            f"a vocabulary of {vocab_size} is too small: {MIN_TRAINED_VOCABULARY} tokens hold "
            "every byte and the end-of-text token",
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
    # Without it, transformers would build the tokenizer class of the model's type and its own
    # pre-tokenizer, instead of reading tokenizer.json.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos_token}
    return _ready(tokenizer, json.dumps(config, indent=2).encode() + b"\n", eos_token)


def load_tokenizer(path: Path, eos_token: str | None = None) -> DatasetTokenizer:
    """Returns the tokenizer of a tokenizer.json, or of a model folder that holds one.

    The end-of-text token is `eos_token`, else what the tokenizer_config.json beside it says.

    Raises:
        NotFound: there is no such file.
        CorruptData: it is not a tokenizer.json.
        InvalidRequest: `eos_token` is no token of it.
    """
    file = path / TOKENIZER_NAME if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"no tokenizer at {file}")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise CorruptData(f"{file} is not a tokenizer.json: {error}") from None
    beside = file.with_name(CONFIG_NAME)
    config_json = beside.read_bytes() if beside.is_file() else None
    if eos_token is None and config_json is not None:
        eos_token = _eos_of_config(config_json, beside)
    return _ready(tokenizer, config_json, eos_token, tokenizer_json=file.read_bytes())


def _ready(
    tokenizer: Tokenizer,
    config_json: bytes | None,
    eos_token: str | None,
    tokenizer_json: bytes | None = None,
) -> DatasetTokenizer:
    eos_token_id = None
    if eos_token is not None:
        eos_token_id = tokenizer.token_to_id(eos_token)
        if eos_token_id is None:
            raise InvalidRequest(f"{eos_token!r} is no token of this tokenizer", field="eos_token")
    if tokenizer_json is None:
        tokenizer_json = tokenizer.to_str(pretty=True).encode() + b"\n"
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return DatasetTokenizer(tokenizer, tokenizer_json, config_json, eos_token_id)


def _eos_of_config(config_json: bytes, path: Path) -> str | None:
    try:
        entry = json.loads(config_json).get("eos_token")
    except (ValueError, AttributeError):
        raise CorruptData(f"{path} is not a tokenizer config") from None
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _batch(texts: Iterator[str]) -> Iterator[str]:
    """Yields texts until a batch is full."""
    size = 0
    for text in texts:
        yield text
        size += len(text)
        if size >= _BATCH_BYTES:
            return
