"""A worker process that tokenises the pieces named on its standard input.

    <- {"files": ..., "folder": ...}            first, once: EncoderFiles, and where pieces go
    <- {"name": ..., "documents": [...]}        then a line for each piece
    -> {"name": ...}                            its file is written
    -> {"name": ..., "reason": ..., "message": ...}    it failed

It ends when its input does, so with the process that started it, however that ends.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lectern_common.errors import LecternError
from lectern_data.read.documents import Document
from lectern_data.read.rows import Content
from lectern_data.tokens.encoder import Encoder, EncoderFiles
from lectern_data.tokens.pieces import Piece, write_piece


def greeting(files: EncoderFiles, folder: Path) -> str:
    """Returns the first line for a worker."""
    said = {
        "tokenizer": str(files.tokenizer),
        "field": files.content.field,
        "is_chat": files.content.is_chat,
        "arguments": files.content.arguments,
        "is_prompt": files.content.is_prompt,
        "chat_template": files.chat_template,
        "special_tokens": files.special_tokens,
        "tool_template": files.tool_template,
        "date": files.date,
        "folder": str(folder),
    }
    return json.dumps(said) + "\n"


def order(piece: Piece) -> str:
    """Returns the line that asks for a piece."""
    documents = [
        (e.name, str(e.path), e.text_bytes, e.sha256, e.place, e.text_sha256)
        for e in piece.documents
    ]
    return json.dumps({"name": piece.name, "documents": documents}) + "\n"


def main() -> None:
    """Answers requests until the input ends."""
    # Ctrl-C reaches the whole process group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    said = json.loads(sys.stdin.readline())
    arguments = tuple(said["arguments"])
    content = Content(said["field"], said["is_chat"], arguments, said["is_prompt"])
    files = EncoderFiles(
        Path(said["tokenizer"]),
        content,
        said["chat_template"],
        said["special_tokens"],
        said["tool_template"],
        said["date"],
    )
    encoder, folder = Encoder(files), Path(said["folder"])
    for line in sys.stdin:
        answer = json.dumps(_answer(encoder, folder, json.loads(line)))
        try:
            print(answer, flush=True)
        except BrokenPipeError:  # the parent is gone
            os._exit(1)


def _answer(encoder: Encoder, folder: Path, asked: dict[str, Any]) -> dict[str, str]:
    documents = [
        Document(name, Path(path), size, sha256, None if place is None else tuple(place), written)
        for name, path, size, sha256, place, written in asked["documents"]
    ]
    name = asked["name"]
    try:
        write_piece(folder, name, encoder.encode(documents))
    except LecternError as error:
        return {"name": name, "reason": error.reason, "message": str(error)}
    except OSError as error:
        return {"name": name, "reason": "", "message": f"cannot write {folder}: {error.strerror}"}
    return {"name": name}


if __name__ == "__main__":
    main()
