"""The files of a model's tokenizer, and what those beside tokenizer.json add to it. No torch.

A tokenizer.json is not always the whole truth. Names of tokens (which one ends a text) stand in
tokenizer_config.json or special_tokens_map.json, and further tokens in added_tokens.json or under
`added_tokens_decoder`. transformers reads them all, so the ids that a model was trained with
contain them; `complete_tokenizer` gives the same ids.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lectern_common.errors import CorruptData, NotFound
from lectern_common.tokens.shards import TOKENIZER_NAME

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
TEMPLATE_JSON_NAME = "chat_template.json"
SPECIAL_MAP_NAME = "special_tokens_map.json"
ADDED_TOKENS_NAME = "added_tokens.json"
TEMPLATES_FOLDER = "additional_chat_templates"
# What transformers' tokenizers of any kind read, relative to the model's folder.
TOKENIZER_FILES = (
    *(TOKENIZER_NAME, CONFIG_NAME, SPECIAL_MAP_NAME, ADDED_TOKENS_NAME),
    *(TEMPLATE_JSON_NAME, "*.jinja", f"{TEMPLATES_FOLDER}/*.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "vocab.bpe", "encoder.json", "dict.txt"),
    *("tokenizer.model*", "*.model", "*.tiktoken", "*.spm", "tekken.json"),
    *("bpe.codes", "emoji.json", "normalizer.json", "source.spm", "target.spm"),
)
# Of these, each is a vocabulary by itself, that transformers can read without a tokenizer.json.
VOCABULARY_FILES = (
    *("vocab.json", "merges.txt", "vocab.txt", "vocab.bpe", "encoder.json"),
    *("tokenizer.model*", "*.model", "*.tiktoken", "*.spm", "tekken.json"),
)
# bos_token, eos_token, ... : what transformers gives names to.
SPECIAL_NAMES = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)
# A text or a template may contain these even if no file gives them an id.
_IN_TEXTS = ("bos_token", "eos_token")


@dataclass(frozen=True)
class NamedToken:
    """A special token with a name: its text, and the file that names it."""

    text: str
    file: str


@dataclass(frozen=True)
class _Beside:
    """A token that stands beside tokenizer.json. `token_id` is None if its file gives none."""

    text: str
    token_id: int | None
    special: bool
    file: str
    settings: Mapping[str, bool]


def tokenizer_files(folder: Path) -> list[str]:
    """Returns the names of the tokenizer's files in a folder, relative to it, sorted."""
    found = [*folder.iterdir(), *(folder / TEMPLATES_FOLDER).glob("*")] if folder.is_dir() else []
    names = (path.relative_to(folder).as_posix() for path in found if path.is_file())
    return sorted(name for name in names if any(fnmatch(name, one) for one in TOKENIZER_FILES))


def vocabulary_files(folder: Path) -> list[str]:
    """Returns the tokenizer's files that hold a vocabulary, without tokenizer.json."""
    return vocabulary_names(tokenizer_files(folder))


def vocabulary_names(names: Iterable[str]) -> list[str]:
    """Returns those of the names that are of files with a vocabulary, without tokenizer.json."""
    return [name for name in names if any(fnmatch(name, one) for one in VOCABULARY_FILES)]


def read_tokenizer_files(path: Path) -> dict[str, bytes]:
    """Returns name -> content of a tokenizer.json, whatever its name, and of the files beside it.

    Raises:
        NotFound: there is no such file.
    """
    folder = path.parent
    try:
        whole = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no {path}") from None
    files = {name: (folder / name).read_bytes() for name in tokenizer_files(folder)}
    return files | {TOKENIZER_NAME: whole}


def tokenizer_config(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Returns tokenizer_config.json, {} if there is none. Raises CorruptData."""
    return _mapping(files, CONFIG_NAME)


def named_tokens(files: Mapping[str, bytes]) -> dict[str, NamedToken]:
    """Returns bos_token, eos_token, ... -> token, from the config and special_tokens_map.json.

    Where they disagree, the map is right only beside a config without `added_tokens_decoder`, as in
    transformers. A token that the config sets to null has no name.

    Raises:
        CorruptData: a file is not a JSON object.
    """
    config, listed = tokenizer_config(files), _mapping(files, SPECIAL_MAP_NAME)
    sources = [(CONFIG_NAME, config), (SPECIAL_MAP_NAME, listed)]
    if "added_tokens_decoder" not in config:
        sources.reverse()
    named: dict[str, NamedToken] = {}
    for name in SPECIAL_NAMES:
        for file, values in sources:
            text = _token_text(values.get(name))
            if text is not None:
                named[name] = NamedToken(text, file)
                break
    return named


def complete_tokenizer(files: Mapping[str, bytes], where: str) -> "tuple[Tokenizer, bool]":
    """Returns the tokenizer with the tokens of all files, and whether tokenizer.json lacked some.

    It neither cuts long texts nor fills up short ones, whatever tokenizer.json says.

    Args:
        files: name -> content, with a tokenizer.json.
        where: its path, for messages.

    Raises:
        CorruptData: a file cannot be read, or gives a token that tokenizer.json lacks another id
            than the next one.
    """
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(files[TOKENIZER_NAME])
    except Exception as error:  # the Rust side raises bare Exception
        raise CorruptData(f"{where} is not a tokenizer.json: {error}") from None
    there = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    lacked = False
    for token in _tokens_beside(files):
        known = there.get(token.text)
        token_id = tokenizer.token_to_id(token.text)
        if known is None or (token.special and not known.special):
            settings = {"normalized": not token.special, **token.settings}
            added = tokenizers.AddedToken(token.text, **settings, special=token.special)
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([added])
            there[token.text] = added
            lacked = True
        given = tokenizer.token_to_id(token.text)
        # A token that tokenizer.json has keeps its id there, in transformers too.
        if token_id is None and token.token_id not in (None, given):
            raise CorruptData(
                f"{token.file} beside {where} gives {token.text!r} the id {token.token_id}, but "
                f"behind the tokens of tokenizer.json it gets {given}; save the tokenizer again "
                "with transformers, so that tokenizer.json holds all its tokens"
            )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, lacked


def special_ids(tokenizer: "Tokenizer") -> dict[int, str]:
    """Returns id -> text of the special tokens of a tokenizer."""
    return {
        token_id: token.content
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }


def _tokens_beside(files: Mapping[str, bytes]) -> Iterator[_Beside]:
    """Yields the tokens that stand beside tokenizer.json, in the order in which they get ids."""
    config, named = tokenizer_config(files), named_tokens(files)
    extra = [
        (text, name)
        for name in (CONFIG_NAME, SPECIAL_MAP_NAME)
        for text in _extra_tokens(_mapping(files, name))
    ]
    special = {token.text for token in named.values()} | {text for text, _ in extra}
    with_ids = list(_with_ids(files, config, special))
    yield from sorted(with_ids, key=lambda token: token.token_id or 0)
    seen = {token.text for token in with_ids}
    in_texts = [(named[name].text, named[name].file) for name in _IN_TEXTS if name in named]
    for text, file in dict.fromkeys([*in_texts, *extra]):
        if text not in seen:
            seen.add(text)
            yield _Beside(text, None, True, file, {})


def _with_ids(
    files: Mapping[str, bytes], config: dict[str, Any], special: set[str]
) -> Iterator[_Beside]:
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for number, entry in decoder.items():
            text = _token_text(entry)
            if text is None or not (number.isascii() and number.isdigit()):
                raise CorruptData(f"{CONFIG_NAME}: added_tokens_decoder has no token at {number!r}")
            entry = entry if isinstance(entry, dict) else {}
            settings = {
                name: bool(entry[name])
                for name in ("lstrip", "rstrip", "normalized", "single_word")
                if name in entry
            }
            is_special = bool(entry.get("special", text in special))
            yield _Beside(text, int(number), is_special, CONFIG_NAME, settings)
        return
    for text, number in _mapping(files, ADDED_TOKENS_NAME).items():
        if not isinstance(number, int):
            raise CorruptData(f"{ADDED_TOKENS_NAME} gives {text!r} no id")
        yield _Beside(text, number, text in special, ADDED_TOKENS_NAME, {})


def _extra_tokens(values: Mapping[str, Any]) -> Iterator[str]:
    """Yields special tokens without one of the usual names."""
    for name in ("additional_special_tokens", "extra_special_tokens"):
        entries = values.get(name)
        if entries and not isinstance(entries, (str, list, dict)):
            raise CorruptData(f"{name} of the tokenizer's files is neither a list nor a mapping")
        for entry in entries.values() if isinstance(entries, dict) else entries or ():
            text = _token_text(entry)
            if text is not None:
                yield text


def _mapping(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        found = json.loads(files.get(name, b"{}"))
        json.dumps(found, ensure_ascii=False).encode()  # half a character is no text
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CorruptData(f"{name} is not a JSON object")
    return found


def _token_text(entry: Any) -> str | None:
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None
