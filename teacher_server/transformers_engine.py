"""A causal language model from transformers as an Engine.

Legend: S tokens of one sequence, N asked rows, V asked vocabulary, D hidden size.
"""

from collections.abc import Sequence

import numpy as np
import structlog
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lectern_common.errors import Misconfigured
from lectern_models.body_and_head import BodyAndHead, parity_probe, split
from lectern_models.loading import ModelFolder, find_model, load_causal_lm
from lectern_models.output_head import OutputHead
from teacher_server.engine import DeviceLost, ModelFacts, SequenceAsk
from teacher_server.model_facts import model_facts
from teacher_server.representations import bits, dense_rows, hidden_rows, top_k_rows

log = structlog.get_logger()


def load(name: str, revision: str | None, dtype: str, device: str) -> "TransformersEngine":
    """Returns the engine of a model folder or hub id, its parity probed.

    Args:
        name: see find_model; `revision` too.
        dtype: "auto" (as stored), "float32", "bfloat16", "float16".
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".

    Raises:
        NotFound, CorruptData, Misconfigured: as find_model and load_causal_lm say.
        Misconfigured: there is no such device; or nothing could be offered.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise Misconfigured(
            f"--device {device}, but this torch ({torch.__version__}) sees no CUDA device"
        )
    folder = find_model(name, revision)
    model = load_causal_lm(folder.path, dtype, device)
    return TransformersEngine(folder, model)


class TransformersEngine:
    """One model on one device, one sequence a forward: see Engine."""

    def __init__(self, folder: ModelFolder, model: PreTrainedModel) -> None:
        self._model = model.requires_grad_(False)
        self._parts, not_split = _split(model)
        self._head = self._parts.head() if self._parts is not None else None
        # Rows are projected in float32; on the CPU the cast is made once, here.
        self._wide_head = _widened(self._head)
        # One copy in host memory for every client that fetches it.
        self._host_head = _on_host(self._head)
        self._facts = model_facts(folder, model, self._head, not_split)
        if not_split is not None:
            log.warning("hidden is not offered", reason=not_split)

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def score(self, ask: SequenceAsk) -> memoryview:
        """Returns the asked rows; see Engine."""
        try:
            return self._score(ask)
        except torch.AcceleratorError as error:  # not raised where memory ran out
            raise DeviceLost(str(error)) from error

    @torch.inference_mode()
    def _score(self, ask: SequenceAsk) -> memoryview:
        device = self._model.device
        ids_1S = torch.from_numpy(ask.token_ids_S.astype(np.int64))[None].to(device)
        asked_S = torch.from_numpy(ask.asked_S).to(device)
        if self._parts is not None and self._wide_head is not None:
            hidden_ND = self._parts.hidden_states(ids_1S)[0][asked_S]
            if ask.representation.kind == "hidden":
                return hidden_rows(hidden_ND)
            head = self._wide_head.sliced(ask.vocab_size)

            def logits_of(start: int, stop: int) -> Tensor:
                return head.logits(hidden_ND[start:stop])
        else:
            own_NV = self._model(input_ids=ids_1S, use_cache=False).logits[0][asked_S]
            own_NV = own_NV[:, : ask.vocab_size]

            def logits_of(start: int, stop: int) -> Tensor:
                rows: Tensor = own_NV[start:stop].float()
                return rows

        num_rows = ask.num_rows
        if ask.representation.kind == "dense":
            return dense_rows(num_rows, ask.vocab_size, logits_of)
        k, temperature = ask.representation.top_k, ask.temperature
        return top_k_rows(num_rows, ask.vocab_size, logits_of, k, temperature)

    def head_bytes(self, vocab_size: int) -> Sequence[memoryview]:
        """Returns weight, then bias, as views, not copies; see Engine."""
        if self._host_head is None:
            raise ValueError("hidden is not offered, so no head is served")
        head = self._host_head.sliced(vocab_size)
        parts = [head.weight_VD] if head.bias_V is None else [head.weight_VD, head.bias_V]
        return [bits(part).data.cast("B") for part in parts]


def _split(model: PreTrainedModel) -> tuple[BodyAndHead | None, str | None]:
    """Returns (the halves, None), or (None, why they cannot be served apart)."""
    try:
        parts = split(model)
    except Misconfigured as error:
        return None, str(error)
    reason = parity_probe(model, parts)
    return (parts, None) if reason is None else (None, reason)


def _widened(head: OutputHead | None) -> OutputHead | None:
    if head is None or head.weight_VD.is_cuda:
        return head
    bias = None if head.bias_V is None else head.bias_V.float()
    return OutputHead(head.weight_VD.float(), bias, head.transform)


def _on_host(head: OutputHead | None) -> OutputHead | None:
    if head is None:
        return None
    bias = None if head.bias_V is None else head.bias_V.cpu()
    return OutputHead(head.weight_VD.cpu(), bias, head.transform)
