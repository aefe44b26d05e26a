"""A causal language model from transformers as an Engine.

Legend: B sequences, S tokens of one sequence, N asked rows, V asked vocabulary, D hidden size.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lectern_common.errors import Misconfigured, TeacherOutOfMemory
from lectern_common.logs import get_logger
from lectern_models.body_and_head import BodyAndHead, split_or_why
from lectern_models.loading import load_causal_lm
from lectern_models.logits.blocks import AskedLogits
from lectern_models.logits.output_head import OutputHead
from lectern_models.model_folder import ModelFolder, find_model
from lectern_models.placement import BALANCED, compile_in_place, resolved_device
from lectern_models.quantization import quantization_of
from teacher_server.engine.equal_shapes import EqualShapes, trials_tell
from teacher_server.engine.facts import model_facts
from teacher_server.engine.measure import (
    TOO_LONG,
    longest_sequence,
    measured_tokens_per_second,
)
from teacher_server.engine.representations import (
    bits,
    from_bits,
    hidden_rows,
    rows_of_hidden,
    rows_of_logits,
)
from teacher_server.engine.seam import (
    ComputedRows,
    DeviceLost,
    ModelFacts,
    SequenceAsk,
    require_finite,
)

log = get_logger()

_Result = TypeVar("_Result")

# How torch and the CUDA libraries word it in a plain RuntimeError.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """How a model is loaded and run.

    Attributes:
        dtype: "auto" (as stored), "float32", "bfloat16", "float16".
        device: see placement.resolved_device.
        mode: "independent" or "throughput"; see lectern_common.teacher.options.MODES.
        quantization: "none", "int8", "int4"; see bitsandbytes_config.
        attention: one of placement.ATTENTION.
        compiled: run the body through torch.compile.
    """

    dtype: str = "auto"
    device: str = "auto"
    mode: str = "independent"
    quantization: str = "none"
    attention: str = "auto"
    compiled: bool = False


def load(
    name: str,
    settings: EngineSettings | None = None,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    models: Path | None = None,
) -> "TransformersEngine":
    """Returns the engine of a model folder, GGUF file or hub id, after a parity probe.

    Args:
        name: see find_model; `revision`, `gguf_file` and `models` too.

    Raises:
        NotFound, CorruptData, Misconfigured: as find_model and load_causal_lm say.
        Misconfigured: there is no such device; the settings exclude each other; or no
            representation could be offered.
    """
    settings = settings or EngineSettings()
    device = resolved_device(settings.device)
    require_fitting(settings, device)
    folder = find_model(name, revision, gguf_file, models=models)
    model = load_causal_lm(
        folder.path,
        settings.dtype,
        device,
        quantization=settings.quantization,
        attention=settings.attention,
        gguf_file=folder.gguf_file,
    )
    return TransformersEngine(folder, model, settings.mode, settings.compiled)


def require_fitting(settings: EngineSettings, device: str) -> None:
    """Raises Misconfigured if a mode's promise would not hold on a resolved device."""
    if settings.quantization == "int8" and settings.mode == "throughput":
        raise Misconfigured(
            "--quantization int8 looks at all tokens of a forward together, so an answer would "
            "depend on other requests; use --quantization int4, or --mode independent"
        )
    if not settings.compiled:
        return
    if settings.mode == "independent":
        raise Misconfigured(
            "--compile chooses kernels by what it computed before, so an answer's bytes would "
            "depend on other requests; use it with --mode throughput"
        )
    if settings.quantization != "none" or device == BALANCED:
        raise Misconfigured(
            "--compile needs an unquantised model on one device; leave out --quantization and "
            "--device balanced"
        )


def _require_mixing_lengths(model: PreTrainedModel, mode: str) -> None:
    """Raises Misconfigured if the length of its neighbours would change a sequence's answer."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {str(value) for key, value in _leaves(rope) if key in ("rope_type", "type")}
    if mode == "throughput" and kinds & {"longrope", "dynamic"}:
        raise Misconfigured(
            f"--mode throughput: this model's rotary embedding ({', '.join(sorted(kinds))}) "
            "depends on the longest sequence of a batch, so an answer would depend on other "
            "requests; use --mode independent"
        )


def _leaves(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield key, value


class SharedForwards(Protocol):
    """Makes forwards together with the other ranks of a model: see teacher_server/ranks/lead.py."""

    @property
    def count(self) -> int:
        """Returns the number of ranks, this one among them."""
        ...

    def hidden_states(self, parts: BodyAndHead, ids_BS: Tensor) -> Tensor:
        """Returns BodyAndHead.hidden_states of int64 ids on the CPU, computed by all ranks.

        Raises:
            torch.OutOfMemoryError: some rank has not enough memory; nothing was exchanged.
            DeviceLost: a rank is gone, or failed alone.
        """
        ...


class TransformersEngine:
    """One model on one device, or this rank's part of one: see Engine.

    Args:
        folder: where the model came from.
        model: loaded, in eval mode.
        mode: "independent" or "throughput"; see EngineSettings.
        compiled: run the body through torch.compile, which is tried here.
        shared: if ranks share the model, makes its forwards; None means that it is whole.

    Raises:
        Misconfigured: no representation could be offered, the body cannot be compiled, or the model
            is shared and cannot be split into body and head.
    """

    def __init__(
        self,
        folder: ModelFolder,
        model: PreTrainedModel,
        mode: str = "independent",
        compiled: bool = False,
        shared: SharedForwards | None = None,
    ) -> None:
        _require_mixing_lengths(model, mode)
        self._model = model.requires_grad_(False)
        self._shared = shared
        self._parts, not_split = split_or_why(model)
        if shared is not None and not_split is not None:
            raise Misconfigured(
                f"--tensor-parallel {shared.count} needs a model that can be split into body and "
                f"output head ({not_split}); use --device balanced"
            )
        self._head = self._parts.whole_head() if self._parts is not None else None
        # Rows are projected in float32; on the CPU the head is cast once, here.
        self._wide_head = None if self._head is None else self._head.widened()
        # One copy in host memory for every client that fetches it.
        self._host_head = _on_host(self._head)
        if compiled:
            compile_in_place(self._parts.body if self._parts is not None else model)
        self._facts = model_facts(
            folder,
            model,
            self._head,
            not_split,
            mode,
            compiled,
            tensor_parallel=1 if shared is None else shared.count,
        )
        # int8: whether neighbours change an answer depends on the tokens, not only on the shape.
        self._equal_shapes = EqualShapes(
            never=not trials_tell(model) or quantization_of(model) == "int8"
        )
        if not_split is not None:
            log.warning("hidden is not offered", reason=not_split)

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def measure(self, batch_tokens: int) -> None:
        """Sets facts.measured_tokens_per_second, and max_positions if only trying shows it.

        Takes about a second. Raises Misconfigured if the model cannot compute a single token.
        """
        try:
            found = measured_tokens_per_second(self, batch_tokens)
        except TOO_LONG:
            longest = longest_sequence(self)
            self._facts = dataclasses.replace(self._facts, max_positions=longest)
            found = measured_tokens_per_second(self, batch_tokens)
        self._facts = dataclasses.replace(self._facts, measured_tokens_per_second=found)

    def score(self, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
        """Returns the rows of base asks; see Engine."""
        if self._parts is None:
            return self._of_the_device(lambda: [self._own_rows(ask) for ask in asks])
        return self._of_the_device(lambda: self._hidden_rows([ask.token_ids_S for ask in asks]))

    def derived(
        self, rows: ComputedRows, ask: SequenceAsk, wanted: Callable[[], bool]
    ) -> ComputedRows:
        """Returns an answer derived from hidden states; see Engine."""
        require_finite(rows, ask)
        return self._of_the_device(lambda: self._projected(rows, ask, wanted))

    def _of_the_device(self, work: Callable[[], _Result]) -> _Result:
        """Runs `work`, and turns errors of the device into those that Engine names."""
        try:
            with torch.inference_mode():
                return work()
        except torch.AcceleratorError as error:  # not raised if memory ran out
            raise DeviceLost(str(error)) from error
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        # Only here, after the except blocks, are the frames that held tensors gone.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise TeacherOutOfMemory(
            "the sequence does not fit into the teacher's memory; send shorter sequences, or start "
            "the teacher with a smaller --max-sequence-tokens, which refuses them at once"
        )

    def _hidden_rows(self, sequences: Sequence[npt.NDArray[np.uint32]]) -> list[ComputedRows]:
        """Returns the final hidden states of every position of each sequence."""
        if self._facts.mode == "throughput" or len(sequences) == 1:
            return self._hidden_together(sequences)
        shape = (len(sequences), len(sequences[0]))
        known = self._equal_shapes.known(shape)
        if known is True:
            return self._hidden_together(sequences)
        alone = [rows for ids_S in sequences for rows in self._hidden_together([ids_S])]
        if known is None:
            self._equal_shapes.tried(shape, alone, self._hidden_together(sequences))
        return alone

    def _hidden_together(self, sequences: Sequence[npt.NDArray[np.uint32]]) -> list[ComputedRows]:
        """Runs one forward, with padding on the right, which a causal model never sees."""
        if self._parts is None:
            raise ValueError("hidden is not offered")
        ids_BS = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
        for row, ids_S in zip(ids_BS, sequences, strict=True):
            row[: len(ids_S)] = ids_S
        ids = torch.from_numpy(ids_BS)
        if self._shared is None:
            hidden_BSD = self._parts.hidden_states(ids.to(self._model.device))
        else:
            hidden_BSD = self._shared.hidden_states(self._parts, ids)
        own = zip(hidden_BSD.cpu() if hidden_BSD.is_cuda else hidden_BSD, sequences, strict=True)
        if len(sequences) == 1:
            return [hidden_rows(hidden_SD) for hidden_SD, _ in own]
        # A copy each: a view would keep the whole batch in memory.
        return [hidden_rows(hidden_SD[: len(ids_S)].clone()) for hidden_SD, ids_S in own]

    def _own_rows(self, ask: SequenceAsk) -> ComputedRows:
        """Returns the answer from the model's own logits, which exist at all positions at once."""
        ids_1S = torch.from_numpy(ask.token_ids_S.astype(np.int64))[None].to(self._model.device)
        own_SV = self._model(input_ids=ids_1S, use_cache=False).logits[0]
        return rows_of_logits(AskedLogits.of(ask.asked_S, own_SV[:, : ask.vocab_size]), ask)

    def _projected(
        self, rows: ComputedRows, ask: SequenceAsk, wanted: Callable[[], bool]
    ) -> ComputedRows:
        """Returns the answer from hidden states and the output head, a block of rows at a time."""
        if self._wide_head is None:
            raise ValueError("hidden is not offered")
        head = self._wide_head.sliced(ask.vocab_size)
        hidden_SD = from_bits(rows.payload, self._facts.hidden_dtype, ask.num_tokens)
        return rows_of_hidden(hidden_SD.to(head.weight_VD.device), head, ask, wanted)

    def head_bytes(self, vocab_size: int) -> Sequence[memoryview]:
        """Returns weight, then bias, as views, not copies; see Engine."""
        if self._host_head is None:
            raise ValueError("hidden is not offered, so no head is served")
        head = self._host_head.sliced(vocab_size)
        parts = [head.weight_VD] if head.bias_V is None else [head.weight_VD, head.bias_V]
        return [bits(part).data.cast("B") for part in parts]


def ran_out_of_memory(error: Exception) -> bool:
    """Returns whether an error of torch means that the device, or the host, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def _on_host(head: OutputHead | None) -> OutputHead | None:
    if head is None:
        return None
    bias = None if head.bias_V is None else head.bias_V.cpu()
    return OutputHead(head.weight_VD.cpu(), bias, head.transform)
