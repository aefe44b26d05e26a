"""The tokenizer of an export: its files, and whether transformers gives the ids of training.

transformers builds the tokenizer class that it knows for a model's type, and for some types it does
not read the pre-tokenizer in tokenizer.json. So the export is loaded as a user would load it, and
compared with the tokenizer that made the training data, on that data's own text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lectern_common.logs import get_logger
from lectern_common.tokens.shards import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    read_manifest,
)
from lectern_common.tokens.tokenizer_files import (
    CONFIG_NAME,
    SPECIAL_NAMES,
    TEMPLATE_JSON_NAME,
    complete_tokenizer,
    named_tokens,
    read_tokenizer_files,
    tokenizer_config,
    tokenizer_files,
    vocabulary_files,
    vocabulary_names,
)
from student_trainer.student.same_ids import first_difference, texts_of

_log = get_logger()

README_NAME = "README.md"
AUTO_TOKENIZER = "AutoTokenizer.from_pretrained"
FAST_TOKENIZER = "PreTrainedTokenizerFast.from_pretrained"


@dataclass(frozen=True)
class ExportedTokenizer:
    """The tokenizer of an export.

    Attributes:
        files: name -> content, as exported.
        loader: the function of transformers that gives the ids of training.
        differs_on: a text for which AutoTokenizer gives other ids; None if it gives the same.
    """

    files: dict[str, bytes]
    loader: str
    differs_on: str | None


def write_tokenizer(
    folder: Path, student: Path | None, dataset: Path | None, data_end: int | None
) -> ExportedTokenizer | None:
    """Writes the tokenizer's files into an export, beside its config.json, and compares them.

    They are the student's own. A student without a tokenizer, or with one that cuts the data
    otherwise, gets those of the dataset, which is what it has learnt. So does one that has learnt
    chats, or has no chat template while the dataset has one: a template belongs to its config.

    Args:
        folder: of the export.
        student: where the student came from.
        dataset: what it was trained on.
        data_end: the dataset's end-of-document token.

    Returns:
        What was written; None if neither student nor dataset has a tokenizer.json.
    """
    own, of_data = read_all(student), read_all(dataset)
    reference, texts = None, list[str]()
    if TOKENIZER_NAME in of_data:
        reference, _ = complete_tokenizer(of_data, str(dataset))
    if dataset is not None and reference is not None and _has_manifest(dataset):
        texts = list(texts_of(dataset, reference))
    files = _chosen(own, of_data, reference, texts, dataset)
    if not files:
        _log.warning("export_without_tokenizer", why="neither the student nor the dataset has one")
        return None
    if TOKENIZER_NAME not in files:  # sentencepiece and the like, and nothing to compare with
        _write(folder, files)
        return None
    tokenizer, lacked = complete_tokenizer(files, f"{TOKENIZER_NAME} of the export")
    if lacked:
        files[TOKENIZER_NAME] = tokenizer.to_str(pretty=True).encode() + b"\n"
    files[CONFIG_NAME] = _config(files, tokenizer, data_end)
    _write(folder, files)
    if reference is None or not texts:  # nothing says that training had another one
        reference = tokenizer
    loader, differs_on = _loader(folder, files, reference, texts)
    written = ExportedTokenizer(read_all(folder), loader, differs_on)
    if differs_on is not None:
        (folder / README_NAME).write_text(_readme(written))
        _log.warning("export_needs_its_loader", loader=loader, auto_tokenizer_differs_on=differs_on)
    return written


def read_all(folder: Path | None) -> dict[str, bytes]:
    """Returns name -> content of a folder's tokenizer files; {} if it has no vocabulary."""
    if folder is None:
        return {}
    if (folder / TOKENIZER_NAME).is_file():
        return read_tokenizer_files(folder / TOKENIZER_NAME)
    if not vocabulary_files(folder):
        return {}
    return {name: (folder / name).read_bytes() for name in tokenizer_files(folder)}


def _chosen(
    own: dict[str, bytes],
    of_data: dict[str, bytes],
    reference: Tokenizer | None,
    texts: list[str],
    dataset: Path | None,
) -> dict[str, bytes]:
    """Returns the files to export; see `write_tokenizer`."""
    if not own or not of_data:
        return dict(own or of_data)
    files = dict(own)
    if TOKENIZER_NAME not in own:
        files |= {name: data for name, data in of_data.items() if name == TOKENIZER_NAME}
    elif reference is not None and texts:
        ours, _ = complete_tokenizer(own, "the student's tokenizer.json")
        differs_on = first_difference(ours, reference, texts)
        if differs_on is not None:
            _log.info("export_has_the_tokenizer_of_the_data", students_own_differs_on=differs_on)
            return dict(of_data)
    is_chats = dataset is not None and _has_manifest(dataset) and read_manifest(dataset).is_chats
    if _has_template(of_data) and (is_chats or not _has_template(files)):
        # A template names tokens (eos_token) as its own config does, so all of that comes along.
        return {name: own[name] for name in vocabulary_names(own)} | of_data
    return files


def _config(files: dict[str, bytes], tokenizer: Tokenizer, data_end: int | None) -> bytes:
    """Returns tokenizer_config.json, made if there is none, so that nothing is guessed.

    Code of the tokenizer's own is never exported, so it is not named either.
    """
    config, named = tokenizer_config(files), named_tokens(files)
    is_new = CONFIG_NAME not in files
    if is_new:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **dict.fromkeys(SPECIAL_NAMES)}
        config |= {name: token.text for name, token in named.items()}
    if "eos_token" not in named and data_end is not None:
        config["eos_token"] = tokenizer.id_to_token(data_end)
    unchanged = not is_new and config == tokenizer_config(files) and "auto_map" not in config
    config.pop("auto_map", None)
    return files[CONFIG_NAME] if unchanged else _json(config)


def _loader(
    folder: Path, files: dict[str, bytes], reference: Tokenizer, texts: Sequence[str]
) -> tuple[str, str | None]:
    """Returns (the loader that gives the ids of training, a text on which AutoTokenizer does not).

    If the class that the config names is what makes them differ, it is exchanged for the one that
    reads tokenizer.json.
    """
    differs_on = _auto_difference(folder, reference, texts)
    if differs_on is None:
        return AUTO_TOKENIZER, None
    config = tokenizer_config(files)
    plain = {**config, "tokenizer_class": "PreTrainedTokenizerFast"}
    if plain != config:
        (folder / CONFIG_NAME).write_bytes(_json(plain))
        if _auto_difference(folder, reference, texts) is None:
            return AUTO_TOKENIZER, None
        (folder / CONFIG_NAME).write_bytes(files[CONFIG_NAME])
    load: Any = PreTrainedTokenizerFast.from_pretrained
    try:
        fast = load(str(folder), local_files_only=True)
        if first_difference(fast, reference, texts) is None:
            return FAST_TOKENIZER, differs_on
    except Exception as error:  # whatever a tokenizer class raises, this one is not the loader
        _log.info("fast_tokenizer_failed", why=str(error))
    return f"PreTrainedTokenizerFast(tokenizer_file={TOKENIZER_NAME!r})", differs_on


def _auto_difference(folder: Path, reference: Tokenizer, texts: Sequence[str]) -> str | None:
    """Returns the first text that AutoTokenizer cuts otherwise, or why it does not load."""
    load: Any = AutoTokenizer.from_pretrained
    try:
        loaded = load(str(folder), local_files_only=True, trust_remote_code=False)
        surplus = loaded.get_vocab().keys() - reference.get_vocab(with_added_tokens=True).keys()
    except Exception as error:  # whatever a tokenizer class raises, it does not load
        return " ".join(f"everything: {error}".split())[:200]
    if surplus:
        return f"{min(surplus)}, a token that it adds"
    return first_difference(loaded, reference, texts)


def _has_manifest(dataset: Path | None) -> bool:
    return dataset is not None and (dataset / MANIFEST_NAME).is_file()


def _is_template(name: str) -> bool:
    return name.endswith(".jinja") or name == TEMPLATE_JSON_NAME


def _has_template(files: dict[str, bytes]) -> bool:
    return any(map(_is_template, files)) or bool(tokenizer_config(files).get("chat_template"))


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _json(config: dict[str, Any]) -> bytes:
    return json.dumps(config, indent=2, ensure_ascii=True).encode() + b"\n"


def _readme(written: ExportedTokenizer) -> str:
    return (
        "# Loading this model\n\n"
        "Its tokenizer needs a loader of its own. `AutoTokenizer` builds another one for this type "
        "of model, with\nother ids than the model was trained on (for instance for "
        f"{written.differs_on!r}).\n\n"
        "```python\n"
        "from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        f"tokenizer = {_call(written.loader)}\n"
        "```\n"
    )


def _call(loader: str) -> str:
    return f'{loader}("FOLDER")' if loader == FAST_TOKENIZER else loader
