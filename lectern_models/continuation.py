"""python -m lectern_models.continuation --prompt TEXT --tokens N FOLDER...: what models write on.

Prints a JSON list with one continuation for each model folder, in order. Greedy: the most probable
token each time, so that equal models say the same.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from lectern_common.errors import LecternError, NotFound
from lectern_models.loading import load_causal_lm


def continue_text(folder: Path, prompt: str, num_tokens: int) -> str:
    """Returns the text of the `num_tokens` tokens that the model in `folder` puts after `prompt`.

    Raises:
        NotFound: no model, or no tokenizer.json, in the folder.
        CorruptData: its weights cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise NotFound(f"no tokenizer.json in {folder}")
    tokenizer = Tokenizer.from_file(str(path))
    model = load_causal_lm(folder, dtype="float32")
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    ids = torch.tensor([prompt_ids])
    with torch.no_grad():
        for _ in range(num_tokens):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return str(tokenizer.decode(ids[0, len(prompt_ids) :].tolist(), skip_special_tokens=False))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
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
