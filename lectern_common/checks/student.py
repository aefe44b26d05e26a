"""Reads what a student's folder says about it, without torch: vocabulary, tokens and weights."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from lectern_common.checks.compatibility import StudentFacts
from lectern_common.checks.config_fields import LAYERS, POSITIONS, VOCAB_SIZE, number
from lectern_common.checks.rules import require_layers_to_leave_out, require_positions
from lectern_common.errors import CorruptData, InvalidSpec, Misconfigured, NotFound
from lectern_common.roots import Roots, resolve_under, what_is_there
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.other_weights import adapter_alone, require_no_other_weights
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import vocabulary_files
from lectern_common.tokens.tokenizer_map import read_tokenizer_map
from lectern_common.tokens.weights import cached_weights_sha256, safetensors_files, tensor_shapes

UNKNOWN_STUDENT = StudentFacts(vocab_size=None, tokens=None, weights_sha256=None)

_CONFIG_NAME = "config.json"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def student_facts(spec: RunSpec, roots: Roots) -> StudentFacts:
    """Returns what the student's folder says; UNKNOWN_STUDENT for a hub id without a folder here.

    `weights_sha256` is None unless the student starts from all the weights of its folder: it is
    None for new weights and for some of the layers, but not with adapters.

    Raises:
        InvalidSpec: there is no such folder, it is not a model folder, or the spec's settings do
            not suit it.
        Incompatible: rows are longer than the student's positions.
        CorruptData: its weights or tokenizer cannot be read.
    """
    field = "student.init" if spec.student.init is not None else "student.config"
    name = spec.student.init or spec.student.config or ""
    folder = resolve_under(roots.models, name, field)
    if not folder.is_dir():
        if spec.student.init is not None and _HUB_ID.match(name):
            return UNKNOWN_STUDENT
        there = what_is_there(roots.models, name, _CONFIG_NAME)
        raise InvalidSpec([(field, f"no model folder {name!r} under the models root {there}")])
    if spec.student.revision is not None:
        why = f"{name} is a folder under the models root and has no revisions; remove it"
        raise InvalidSpec([("student.revision", why)])
    config = _read_config(folder, field)
    require_positions(spec.data.seq_len, number(config, POSITIONS))
    files = _weight_files(folder, field, config) if spec.student.init else []
    layers = number(config, LAYERS)
    if spec.student.keep_every_nth_layer is not None and layers is not None:
        require_layers_to_leave_out(layers)
    if spec.student.lora is not None:
        _require_adapters_fit(spec.student.lora.targets, files)
    whole = spec.student.init is not None and spec.student.keep_every_nth_layer is None
    tokenizer = folder / TOKENIZER_NAME
    vocab_size = number(config, VOCAB_SIZE)
    return StudentFacts(
        vocab_size=vocab_size,
        tokens=read_tokenizer_map(tokenizer) if tokenizer.exists() else None,
        weights_sha256=cached_weights_sha256(files) if whole else None,
        max_positions=number(config, POSITIONS),
    )


def unread_vocabulary(spec: RunSpec, roots: Roots) -> list[str]:
    """Returns the files of a student's tokenizer that only its trainer can read."""
    name = spec.student.init or spec.student.config or ""
    folder = resolve_under(roots.models, name, "student.init")
    return [] if (folder / TOKENIZER_NAME).exists() else vocabulary_files(folder)


def _weight_files(folder: Path, field: str, config: dict[str, Any]) -> list[Path]:
    try:
        require_no_other_weights(folder, config)
        return safetensors_files(folder)
    except (NotFound, Misconfigured) as error:
        raise InvalidSpec([(field, str(error))]) from None


def _require_adapters_fit(targets: list[str] | None, files: list[Path]) -> None:
    """Raises InvalidSpec if peft is missing, or a target names no weight matrix."""
    if importlib.util.find_spec("peft") is None:
        why = "needs peft: pip install 'lectern[lora]', or remove it"
        raise InvalidSpec([("student.lora", why)])
    matrices = {
        name.removesuffix(".weight")
        for name, shape in tensor_shapes(files).items()
        if name.endswith(".weight") and len(shape) == 2
    }
    for target in targets or ():
        if not any(name == target or name.endswith(f".{target}") for name in matrices):
            there = ", ".join(sorted({name.rpartition(".")[2] for name in matrices}))
            why = f"the student has no layer {target}; there are: {there}"
            raise InvalidSpec([("student.lora.targets", why)])


def _read_config(folder: Path, field: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG_NAME).read_bytes())
    except FileNotFoundError:
        why = adapter_alone(folder) or "has no config.json"
        raise InvalidSpec([(field, f"{folder.name} {why}")]) from None
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{folder / 'config.json'} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise CorruptData(f"{folder / 'config.json'} is not a model config")
    return config
