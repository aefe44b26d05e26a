"""Students: what the loop trains, and the view of the original specification's callers.

Legend: B sequences of equal length, S tokens, D hidden size, V vocabulary.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lectern_common.errors import Incompatible, InvalidRequest, Misconfigured
from lectern_models.body_and_head import parity_probe, split
from lectern_models.loading import DTYPES, build_causal_lm, load_causal_lm, max_positions
from lectern_models.logits.output_head import OutputHead
from lectern_models.modes import evaluating
from lectern_models.packing import packing_probe
from student_trainer.data.lists import token_arrays
from student_trainer.student.lora import Adapters

_Result = TypeVar("_Result")


class Student(nn.Module):
    """What the training loop trains: a body and a separate head, for objective/loss.py."""

    vocab_size: int

    @abstractmethod
    def hidden_states(self, input_ids_BS: Tensor, position_ids_BS: Tensor | None = None) -> Tensor:
        """Returns hidden states [B, S, D] after the final norm, with gradient; ids are int64.

        Where `position_ids_BS` restart at 0, a document begins, which attends to nothing before it.
        """

    @abstractmethod
    def output_head(self) -> OutputHead:
        """Returns the head over the live parameters."""

    def forward(
        self,
        input_ids_BS: Tensor,
        compute: Callable[[Tensor, OutputHead], _Result],
        position_ids_BS: Tensor | None = None,
    ) -> _Result:
        """Returns compute(hidden_BSD, head).

        Everything that uses parameters, the objective included, runs within a forward: parameters
        that are split among devices (FSDP) are whole only in here.
        """
        return compute(self.hidden_states(input_ids_BS, position_ids_BS), self.output_head())


class StudentLogitsProvider(Protocol):
    """The student interface of the original specification's callers."""

    @property
    def vocab_size(self) -> int:
        """The width of every row."""
        ...

    def logits_for_batch(self, input_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns one row of logits per sequence, at its last position; [] for an empty batch."""
        ...

    def apply_kd_gradient(
        self,
        input_ids: Sequence[Sequence[int]],
        gradients: Collection[npt.ArrayLike],
        learning_rate: float,
    ) -> None:
        """Takes one step of plain gradient descent on the mean loss over all given rows.

        Args:
            input_ids: sequences of any lengths.
            gradients: for each sequence d loss / d logits: [V] at its last position (as `kd_step`
                returns them), or [S, V] at every position. Every row takes part in the step.
            learning_rate: of this step.

        Raises:
            InvalidRequest: the shapes do not match the sequences; nothing was changed.
        """
        ...


class CausalStudent(Student):
    """A transformers model that learns: float32 parameters, computed in `compute_dtype`.

    Tied embeddings are one parameter. `model` is the whole model, for export; if it has `adapters`,
    only those are trained.

    Raises:
        Misconfigured: body and head do not reproduce the model, or a parameter is not float32.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        compute_dtype: torch.dtype = torch.float32,
        adapters: Adapters | None = None,
    ) -> None:
        super().__init__()
        narrow = [name for name, p in model.named_parameters() if p.dtype != torch.float32]
        if narrow:
            raise Misconfigured(f"a student's parameters must be float32; {narrow[0]} is not")
        self.model = model
        self.adapters = adapters
        self._parts = split(model)
        reason = parity_probe(model, self._parts)
        if reason is not None:
            raise Misconfigured(f"this student cannot be trained: {reason}")
        self._compute_dtype = compute_dtype
        self._is_compiled = False
        self._max_positions = max_positions(model)
        self.vocab_size = self._parts.head().vocab_size

    @classmethod
    def from_pretrained(
        cls, folder: Path, device: torch.device, compute_dtype: str = "auto"
    ) -> "CausalStudent":
        """Returns a student with the weights of a model folder (see find_model).

        Args:
            folder: holds config.json and safetensors weights.
            device: where to train the student.
            compute_dtype: "float32", "bfloat16", or "auto": bfloat16 on CUDA, float32 elsewhere.

        Raises:
            NotFound, CorruptData, Misconfigured: as load_causal_lm says.
        """
        model = load_causal_lm(folder, "float32", str(device))
        return cls(model, compute_dtype_named(compute_dtype, device))

    @classmethod
    def from_config(
        cls, folder: Path, seed: int, device: torch.device, compute_dtype: str = "auto"
    ) -> "CausalStudent":
        """Returns a student with weights drawn from `seed`; otherwise as `from_pretrained`."""
        student = cls(build_causal_lm(folder, seed), compute_dtype_named(compute_dtype, device))
        return student.to(device)

    def hidden_states(self, input_ids_BS: Tensor, position_ids_BS: Tensor | None = None) -> Tensor:
        """Returns hidden states [B, S, D] in the compute dtype, with gradient.

        Raises:
            InvalidRequest: the sequences are longer than the model's positions.
        """
        length = input_ids_BS.shape[1]
        if self._max_positions is not None and length > self._max_positions:
            raise InvalidRequest(
                f"a sequence of {length} tokens exceeds the {self._max_positions} positions of the "
                "student"
            )
        with self.precision():
            hidden_BSD = self._parts.hidden_states(input_ids_BS, position_ids_BS)
        # A norm's float32 weight widens its result; a head under autocast narrows it again too.
        return hidden_BSD.to(self._compute_dtype)

    def output_head(self) -> OutputHead:
        return self._parts.head()

    @property
    def compute_dtype(self) -> torch.dtype:
        return self._compute_dtype

    def precision(self) -> AbstractContextManager[object]:
        """Returns the context in which the model computes in the compute dtype."""
        if self._compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.output_head().weight_VD.device.type, self._compute_dtype)

    def why_not_apart(self) -> str | None:
        """Returns why the documents of a row attend to each other, whatever the position ids.

        None means that they do not.
        """
        with evaluating(self):
            return packing_probe(self._parts, self.vocab_size)

    def require_documents_apart(self) -> None:
        """Raises unless the model can keep the documents of a row from attending to each other.

        Raises:
            Incompatible: they attend to each other, whatever the position ids.
        """
        reason = self.why_not_apart()
        if reason is not None:
            raise Incompatible(
                "data.attention_across_documents false, the default for chats, does not work with "
                f"this student: {reason}. Set it to true, or choose another student"
            )

    def compile_body(self, backend: str = "inductor") -> None:
        """Has torch.compile compile the body at its next use; parameter names stay the same."""
        self._parts.body.compile(backend=backend)
        self._is_compiled = True

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Within the block, `model` computes in the compute dtype, and nothing is compiled.

        Each token of a text has another shape, and would be compiled anew.
        """
        with ExitStack() as stack:
            if self._is_compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self.precision())
            yield

    def checkpoint_activations(self) -> None:
        """Makes each layer keep only its input and recompute the rest in the backward pass.

        Gradients stay the same: dropout draws the same numbers again.

        Raises:
            Misconfigured: the architecture does not support it.
        """
        try:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise Misconfigured(f"{error}; set device.activation_checkpointing to false") from error
        # Only reentrant checkpointing needs this: frozen embeddings would get gradients.
        self.model.disable_input_require_grads()

    @torch.no_grad()
    def logits_for_batch(self, input_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See StudentLogitsProvider; dropout is off."""
        with evaluating(self):
            return [
                self._logits(ids_S)[-1].tolist()
                for ids_S in token_arrays(input_ids, self.vocab_size)
            ]

    @torch.no_grad()
    def logits_per_position(
        self, input_ids: Sequence[Sequence[int]]
    ) -> list[npt.NDArray[np.float32]]:
        """Returns the logits [S, V] of each sequence, at every position; dropout is off."""
        with evaluating(self):
            return [
                self._logits(ids_S).cpu().numpy()
                for ids_S in token_arrays(input_ids, self.vocab_size)
            ]

    def apply_kd_gradient(
        self,
        input_ids: Sequence[Sequence[int]],
        gradients: Collection[npt.ArrayLike],
        learning_rate: float,
    ) -> None:
        """See StudentLogitsProvider. One sequence a forward, dropout off; `.grad` is unchanged."""
        sequences = token_arrays(input_ids, self.vocab_size)
        rows = gradient_rows(sequences, gradients, self.vocab_size)
        num_rows = sum(len(rows_SV) for rows_SV in rows)
        parameters = [p for p in self.parameters() if p.requires_grad]
        sums = [torch.zeros_like(p) for p in parameters]
        with evaluating(self):
            for ids_S, rows_SV in zip(sequences, rows, strict=True):
                logits_SV = self._logits(ids_S)[-len(rows_SV) :]
                upstream_SV = torch.from_numpy(rows_SV / num_rows).to(logits_SV)
                parts = torch.autograd.grad(logits_SV, parameters, upstream_SV, allow_unused=True)
                for total, part in zip(sums, parts, strict=True):
                    if part is not None:
                        total += part
        with torch.no_grad():
            for parameter, total in zip(parameters, sums, strict=True):
                parameter.sub_(total, alpha=learning_rate)

    def _logits(self, ids_S: npt.NDArray[np.uint32]) -> Tensor:
        device = self.output_head().weight_VD.device
        ids_1S = torch.from_numpy(ids_S.astype(np.int64))[None].to(device)
        return self.output_head().logits(self.hidden_states(ids_1S)[0])


class FixtureStudent(Student):
    """A student that is one row of logits for any input. For tests and plumbing.

    The loop trains it like any other: its hidden states are its logits, its head the identity.
    """

    def __init__(self, vocab_size: int, initial_value: float = 0.0) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.logits_V = nn.Parameter(torch.full((vocab_size,), float(initial_value)))
        self.register_buffer("_identity_VV", torch.eye(vocab_size), persistent=False)

    def hidden_states(self, input_ids_BS: Tensor, position_ids_BS: Tensor | None = None) -> Tensor:
        """Returns the logits for every token, [B, S, V]."""
        return self.logits_V.expand(*input_ids_BS.shape, self.vocab_size)

    def output_head(self) -> OutputHead:
        return OutputHead(self.get_buffer("_identity_VV"))

    def logits_for_batch(self, input_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See StudentLogitsProvider; token ids are ignored."""
        return [self.logits_V.tolist() for _ in token_arrays(input_ids)]

    def apply_kd_gradient(
        self,
        input_ids: Sequence[Sequence[int]],
        gradients: Collection[npt.ArrayLike],
        learning_rate: float,
    ) -> None:
        """See StudentLogitsProvider; token ids are ignored."""
        rows = gradient_rows(token_arrays(input_ids), gradients, self.vocab_size)
        if not rows:
            return
        mean_V = torch.from_numpy(np.concatenate(rows).mean(0)).to(self.logits_V)
        with torch.no_grad():
            self.logits_V.sub_(mean_V, alpha=learning_rate)


def gradient_rows(
    sequences: Sequence[npt.NDArray[np.uint32]],
    gradients: Collection[npt.ArrayLike],
    vocab_size: int,
) -> list[npt.NDArray[np.float64]]:
    """Returns each sequence's gradient as [1, V] (its last position) or [S, V] (every position).

    Raises:
        InvalidRequest: the number of gradients is not that of sequences, or a shape is wrong.
    """
    if len(sequences) != len(gradients):
        raise InvalidRequest(
            f"{len(sequences)} sequences, but {len(gradients)} gradients", "gradients"
        )
    rows = []
    for ids_S, gradient in zip(sequences, gradients, strict=True):
        array = np.asarray(gradient, np.float64)
        if array.shape not in ((vocab_size,), (len(ids_S), vocab_size)):
            raise InvalidRequest(
                f"a gradient is {list(array.shape)}; it must be [{vocab_size}] or "
                f"[{len(ids_S)}, {vocab_size}]",
                "gradients",
            )
        rows.append(array.reshape(-1, vocab_size))
    return rows


def compute_dtype_named(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype for "float32", "bfloat16" or "auto": bfloat16 on CUDA, else float32."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return DTYPES[name]
