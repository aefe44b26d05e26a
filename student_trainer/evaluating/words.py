"""A model's tokenizer as evaluations use it: ids of texts, texts of ids, and chats."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lectern_common.errors import CorruptData, InvalidRequest, Misconfigured, NotFound
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import (
    complete_tokenizer,
    named_tokens,
    read_tokenizer_files,
)
from lectern_models.continuation import tokens_that_begin

_OF_MODELS = ("generation_config.json", "config.json")


class TextTokenizer:
    """The tokenizer in a model folder.

    Raises:
        NotFound: the folder has no tokenizer.json.
        CorruptData: a file of it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / TOKENIZER_NAME
        if not path.exists():
            raise NotFound(
                f"{folder} has no {TOKENIZER_NAME}, so texts have no tokens; put the model's there"
            )
        self.folder = folder
        files = read_tokenizer_files(path)
        self._tokenizer, _ = complete_tokenizer(files, str(path))
        self._named = {
            name: self._tokenizer.token_to_id(token.text)
            for name, token in named_tokens(files).items()
        }

    def ids(self, text: str) -> list[int]:
        """Returns the ids of a text, without any that the tokenizer puts around it."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Returns what ids add to the text of a prompt; some tokenizers join texts at tokens."""
        before = self.text(prompt)
        whole = self.text([*prompt, *ids])
        return whole[len(before) :] if whole.startswith(before) else self.text(ids)

    @property
    def prompt_begins(self) -> list[int]:
        """The ids that a text for the model begins with: as it has learnt, or as its tokenizer."""
        return tokens_that_begin(self.folder)

    def prefix_id(self) -> int:
        """Returns the id before a text whose first token is predicted: bos, else eos.

        As lm-evaluation-harness has it; if the tokenizer names neither, as the model's config does.

        Raises:
            InvalidRequest: nothing names one.
        """
        named: list[Any] = [self._named.get("bos_token"), self._named.get("eos_token")]
        for name in _OF_MODELS:
            config = _mapping(self.folder / name)
            for key in ("bos_token_id", "eos_token_id"):
                value = config.get(key)
                named.append(value[0] if isinstance(value, list) and value else value)
        size = self._tokenizer.get_vocab_size()
        for token_id in named:
            if type(token_id) is int and 0 <= token_id < size:
                return token_id
        raise InvalidRequest(
            f"neither tokenizer nor config in {self.folder} name a bos or eos token, after which "
            "the first token of a text is predicted; name one in tokenizer_config.json",
            "model",
        )

    def chat_prompt(self, message: str) -> list[int]:
        """Returns the ids that ask the model for its answer to one message of a user.

        Raises:
            InvalidRequest: the model has no chat template.
            Misconfigured: Jinja is missing.
            CorruptData: the template fails.
        """
        return self.ids(self._rendered(message))

    def _rendered(self, message: str) -> str:
        from transformers import AutoTokenizer

        load: Any = AutoTokenizer.from_pretrained
        tokenizer = load(str(self.folder), trust_remote_code=False, local_files_only=True)
        if not tokenizer.chat_template:
            raise InvalidRequest(
                f"{self.folder} has no chat template; set code.mode completion", "code.mode"
            )
        try:
            return str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": message}],
                    add_generation_prompt=True,
                    tokenize=False,
                )
            )
        except ImportError as error:
            raise Misconfigured(f"{error}: pip install 'lectern[data]'") from None
        except Exception as error:  # whatever a template raises
            text = " ".join(str(error).split())[:300]
            raise CorruptData(f"the chat template in {self.folder} fails: {text}") from None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
