"""Token shards for tests, written by hand, so that `lectern data prepare` is not under test."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def write_shards(
    folder: Path,
    tokens: npt.ArrayLike,
    *,
    vocab_size: int | None = None,
    shards: int = 1,
    tokenizer_sha256: str = "0" * 64,
    documents: npt.ArrayLike | None = None,
    chats: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    **fields: Any,
) -> Path:
    """Writes a dataset folder of flat uint32 shards with its manifest; returns the folder.

    vocab_size: for the manifest; None means one more than the largest id.
    documents: index of each document's first token; None for none in the manifest, as in old ones.
    chats: index of each chat's first document; None for none in the manifest.
    mask: one byte per token; None for no mask.
    fields: more of the manifest's fields, such as content.
    """
    ids = np.asarray(tokens, "<u4")
    folder.mkdir(parents=True, exist_ok=True)
    for index, part in enumerate(np.array_split(ids, shards)):
        (folder / f"shard-{index:05d}.bin").write_bytes(part.tobytes())
    manifest = {
        "schema": "pretokenize-bin-v1",
        "tokenizer_sha256": tokenizer_sha256,
        "corpus_sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        "shard_count": shards,
        "total_tokens": len(ids),
        "vocab_size": int(ids.max()) + 1 if vocab_size is None else vocab_size,
        "eos_policy": "none",
        "eos_token_id": None,
        "seq_length_hint": None,
        "producer_version": "test",
        "producer_sha256": "",
    }
    if documents is not None:
        starts = np.asarray(documents, "<u8")
        (folder / "documents.bin").write_bytes(starts.tobytes())
        manifest["document_count"] = len(starts)
        manifest["documents_sha256"] = hashlib.sha256(starts.tobytes()).hexdigest()
    if chats is not None:
        firsts = np.asarray(chats, "<u8")
        (folder / "chats.bin").write_bytes(firsts.tobytes())
        manifest["chat_count"] = len(firsts)
        manifest["chats_sha256"] = hashlib.sha256(firsts.tobytes()).hexdigest()
    if mask is not None:
        learnt = np.asarray(mask, np.uint8)
        for index, part in enumerate(np.array_split(learnt, shards)):
            (folder / f"mask-{index:05d}.bin").write_bytes(part.tobytes())
        manifest["mask_sha256"] = hashlib.sha256(learnt.tobytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**manifest, **fields}))
    return folder
