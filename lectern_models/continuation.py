"""Prints how models continue a text: `python -m lectern_models.continuation`.

    python -m lectern_models.continuation --prompt TEXT --tokens N FOLDER...

Prints a JSON list with one continuation for each model folder, in order. Decoding is greedy: the
most probable token each time, so that equal models write the same.
"""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from lectern_common.errors import LecternError, NotFound
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import complete_tokenizer, read_tokenizer_files
from lectern_models.loading import load_causal_lm
from lectern_models.model_tokenizer import tokens_before_text

METADATA_NAME = "distillation_metadata.json"


def greedy_continuations(
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    likeliest: Callable[[list[list[int]]], Sequence[int]],
    ends: Collection[int] = (),
) -> list[list[int]]:
    """Returns the continuation of each prompt: the likeliest id each time, up to `num_tokens`.

    Args:
        prompts: token ids; none is empty.
        num_tokens: maximum length of each continuation.
        likeliest: returns the next id of each given sequence. Called at most `num_tokens` times,
            with the sequences that have not ended.
        ends: ids that end a sequence; not part of the continuation.
    """
    written: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for _ in range(num_tokens):
        if not going:
            break
        following = likeliest([[*prompts[index], *written[index]] for index in going])
        for index, token in zip(list(going), following, strict=True):
            if token in ends:
                going.remove(index)
            else:
                written[index].append(token)
    return written


def continue_text(folder: Path, prompt: str, num_tokens: int) -> str:
    """Returns the `num_tokens` tokens with which the model in `folder` continues `prompt`, as text.

    The prompt begins as the model has learnt it: as its training data did, if Lectern trained it,
    else with what its tokenizer puts before a text.

    Raises:
        NotFound: the folder has no model or no tokenizer.json.
        CorruptData: its weights or its tokenizer cannot be read.
    """
    path = folder / TOKENIZER_NAME
    if not path.exists():
        raise NotFound(f"no {TOKENIZER_NAME} in {folder}")
    tokenizer, _ = complete_tokenizer(read_tokenizer_files(path), str(path))
    model = load_causal_lm(folder, dtype="float32")
    prompt_ids = list(tokenizer.encode(prompt, add_special_tokens=False).ids)
    beginning = tokens_that_begin(folder)
    if prompt_ids[: len(beginning)] != beginning:
        prompt_ids = beginning + prompt_ids

    @torch.no_grad()
    def likeliest(sequences: list[list[int]]) -> list[int]:
        return [int(model(torch.tensor([ids])).logits[0, -1].argmax()) for ids in sequences]

    [written] = greedy_continuations([prompt_ids], num_tokens, likeliest)
    return str(tokenizer.decode(written, skip_special_tokens=False))


def tokens_that_begin(folder: Path) -> list[int]:
    """Returns the ids that a text for the model in a folder begins with."""
    try:
        trained = json.loads((folder / METADATA_NAME).read_bytes())
        if "begins_texts_with" in trained:
            return [int(one) for one in trained["begins_texts_with"]]
    except (OSError, ValueError, TypeError):  # not an export, or an older one
        pass
    return list(tokens_before_text(folder) or ())


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lectern_models.continuation")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, default=40)
    options = parser.parse_args(argv)
    try:
        texts = [continue_text(path, options.prompt, options.tokens) for path in options.folders]
    except LecternError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(texts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
