"""Estimates a run's device memory, part by part, and compares it with what is free.

A run is refused if what it certainly needs does not fit, and warned if its activations may not fit.

Legend: P parameters, of which T are trained; L layers, h hidden size, m width of the MLP, q and k
widths of queries and keys, a heads; V vocabulary, S tokens per row, B rows per micro-batch, n
tokens per chunk, R devices that share the run; O parameters outside the layers (embedding, norm,
head), Y those of the largest layer.

    parameters   4 P / R                   float32
    gradients    4 T / R                   float32
    optimizer    8 T / R                   AdamW's two moments
    gathered     4 (O + Y)                 with R > 1: the parameters that each device gathers
                                           while it computes, besides its shard
    activations  see activation_bytes
    objective    4 (4 n V + V h)           a chunk's logits and their intermediates; the head's
                                           gradient
    teacher head w V D                     with `hidden`; w is 4 on the CPU, as stored elsewhere
    answers      bytes of a step's answers, for each prefetched step and the current one

The first three and the head are allocated at every optimizer step, so they are certain. Activations
are freed by then, so the total exceeds the tensors at the peak: 1.07 to 1.20 times them for Qwen2
of 28 M parameters (benchmarks/trainer/memory_estimate.py). On the CPU a process holds up to twice
its tensors, because glibc keeps freed memory. Gradients of gathered parameters are allocated after
the chunk's logits are freed: two ranks took 1 / 1.11 and 1 / 1.27 of this estimate.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import psutil

from lectern_common.words import gib

FLOAT32_BYTES = 4
ADAMW_BYTES = 8
# [n, V] tensors that the objective holds at once: the student's and the teacher's logits, and as
# much again, at most, for cross entropy and divergence, which pass over a few rows at a time.
CHUNK_TENSORS = 4
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a student that the estimate needs.

    Attributes:
        num_parameters: trained and frozen; tied ones count once.
        num_trainable: those with a gradient.
        mlp_size: width of the MLP, times the experts per token.
        query_size: heads times head width; `key_size` is the same for keys, or for values.
        num_outside: O, parameters outside the layers.
        num_largest_layer: Y, parameters of the largest layer.
        keeps_scores: attention keeps its [heads, S, S] scores for the backward pass, because it has
            no fused kernel, or dropout on them.
        activations_known: every layer is attention and MLP. What a state-space, recurrent or
            linear-attention layer keeps depends on the kernels that are installed: several times as
            much without them.
    """

    num_parameters: int
    num_trainable: int
    num_layers: int
    hidden_size: int
    mlp_size: int
    query_size: int
    key_size: int
    num_heads: int
    vocab_size: int
    num_outside: int
    num_largest_layer: int
    keeps_scores: bool = False
    activations_known: bool = True


@dataclass(frozen=True)
class Computation:
    """How a device computes one micro-batch.

    Attributes:
        sequences: rows per micro-batch, of `seq_len` tokens each.
        compute_bytes: bytes per number in the compute dtype: 4 or 2.
        checkpointing: each layer's activations are recomputed in the backward pass.
        chunk_tokens: tokens whose logits are in memory at once.
        devices: how many share parameters, gradients and moments.
        head_bytes: of the teacher's output head on the device; 0 without one.
        answer_bytes: of the teacher's answers for one step of one device.
        steps_ahead: steps whose answers are prefetched.
    """

    sequences: int
    seq_len: int
    compute_bytes: int = FLOAT32_BYTES
    checkpointing: bool = False
    chunk_tokens: int = 64
    devices: int = 1
    head_bytes: int = 0
    answer_bytes: int = 0
    steps_ahead: int = 0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device; `answers` are in the host's memory.

    `activations_known` is False if `activations` may be off by several times: see ModelShape.
    """

    parameters: int
    gradients: int
    optimizer: int
    teacher_head: int
    gathered: int
    activations: int
    objective: int
    answers: int
    activations_known: bool = True

    @property
    def certain(self) -> int:
        """Bytes that are allocated at every optimizer step, however it is computed."""
        return self.parameters + self.gradients + self.optimizer + self.teacher_head

    @property
    def on_device(self) -> int:
        """Everything except the answers."""
        return self.certain + self.gathered + self.activations + self.objective

    @property
    def total(self) -> int:
        """Everything, with the answers: what a run on the CPU needs."""
        return self.on_device + self.answers

    def parts(self) -> dict[str, int]:
        """Returns the named parts, in order."""
        names = [part.name for part in fields(self) if part.name != "activations_known"]
        return {name: getattr(self, name) for name in names}


def estimate_memory(shape: ModelShape, computed: Computation) -> MemoryEstimate:
    """Returns the memory that a device needs for one step of a run."""
    gathered = FLOAT32_BYTES * (shape.num_outside + shape.num_largest_layer)
    head_gradient = FLOAT32_BYTES * shape.vocab_size * shape.hidden_size
    chunk_tokens = min(computed.chunk_tokens, computed.sequences * computed.seq_len)
    chunk = FLOAT32_BYTES * CHUNK_TENSORS * chunk_tokens * shape.vocab_size
    return MemoryEstimate(
        parameters=_shared(FLOAT32_BYTES * shape.num_parameters, computed.devices),
        gradients=_shared(FLOAT32_BYTES * shape.num_trainable, computed.devices),
        optimizer=_shared(ADAMW_BYTES * shape.num_trainable, computed.devices),
        teacher_head=computed.head_bytes,
        gathered=gathered if computed.devices > 1 else 0,
        activations=activation_bytes(shape, computed),
        objective=chunk + head_gradient,
        answers=computed.answer_bytes * (computed.steps_ahead + 1),
        activations_known=shape.activations_known,
    )


def activation_bytes(shape: ModelShape, computed: Computation) -> int:
    """Returns the bytes that autograd keeps between a micro-batch's forward and backward pass.

    Counted tensor by tensor over a decoder layer with RMSNorm, rotary embedding, fused attention
    and gated MLP, as in transformers (Korthikanti et al. 2022, section 4, count a GPT layer in the
    same way). Numbers per token and layer:

        6 h        input, normalised and scaled, of each of the two norms
        2 q + 2 k  inputs and output of attention
        4 m        gate, its SiLU, up, and their product
        a          attention's log-sum-exp; 2 a S more if it keeps its scores

    In 16 bits the 4 h of the norms stay float32, each of q, k, v, gate and up casts its input
    again (5 h), and the cast weights of the layers are kept. With checkpointing each layer keeps h,
    and one layer at a time keeps everything. The embedding and the last norm keep 3 h, and the
    valid positions' hidden states and their gradient are 2 h.

    Within 12 % of the measured bytes for Qwen, Llama and OLMo, a factor of 1.7 for GPT-2, OPT,
    Gemma, Phi and Mixtral (tests/student_trainer/student/test_shape.py). State-space, recurrent and
    linear-attention layers count as if they were attention, which is only a hint: 2 to 5 times too
    little without fused kernels.
    """
    tokens, narrow = computed.sequences * computed.seq_len, computed.compute_bytes
    norms = 4 * FLOAT32_BYTES + (2 * narrow if narrow == FLOAT32_BYTES else 5 * narrow)
    attention = narrow * 2 * (shape.query_size + shape.key_size) + FLOAT32_BYTES * shape.num_heads
    if shape.keeps_scores:
        attention += 2 * FLOAT32_BYTES * shape.num_heads * computed.seq_len
    layer = tokens * (norms * shape.hidden_size + attention + narrow * 4 * shape.mlp_size)
    hidden = tokens * FLOAT32_BYTES * shape.hidden_size
    whole_layers, inputs = shape.num_layers, 0
    if computed.checkpointing:
        whole_layers, inputs = min(1, shape.num_layers), shape.num_layers
    cast = 0
    if narrow != FLOAT32_BYTES and shape.num_layers:
        in_layers = max(0, shape.num_parameters - shape.vocab_size * shape.hidden_size)
        cast = narrow * in_layers * whole_layers // shape.num_layers
    return whole_layers * layer + inputs * hidden + 5 * hidden + cast


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that a run may use, including what it already holds.

    Attributes:
        device: its name, "cpu" or "cuda:0".
        device_bytes: free on each device.
        host_bytes: free on the machine; on the CPU the same memory.
    """

    device: str
    device_bytes: int
    host_bytes: int

    @property
    def is_host(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True)
class Fit:
    """`problem` is why the run cannot work, `warning` why it may not; both say what to set.

    `note` is what the estimate does not know.
    """

    needed_bytes: int
    free_bytes: int
    problem: str | None = None
    warning: str | None = None
    note: str | None = None


_UNKNOWN_ACTIVATIONS = (
    "how much memory the activations take is not known for this student: it has layers that are "
    "not attention (state-space, recurrent, linear attention), so the estimate of {size} may be "
    "several times too low. If the first step runs out of memory, lower "
    "batch.micro_batch_sequences, or set device.activation_checkpointing"
)


def memory_fit(estimate: MemoryEstimate, free: FreeMemory, processes: int = 1) -> Fit:
    """Returns whether an estimate fits into the free memory.

    Args:
        estimate: for one device.
        free: the free memory.
        processes: ranks that share the host's memory, and on the CPU also the device's.
    """
    fit = _fit(estimate, free, processes)
    if estimate.activations_known:
        return fit
    note = _UNKNOWN_ACTIVATIONS.format(size=gib(estimate.activations))
    return replace(fit, note=note)


def _fit(estimate: MemoryEstimate, free: FreeMemory, processes: int) -> Fit:
    sharing = processes if free.is_host else 1
    certain, whole = sharing * estimate.certain, sharing * estimate.on_device
    if free.is_host:
        whole = sharing * estimate.total
    limit = free.device_bytes
    if certain > limit:
        parts = [
            f"{name.replace('_', ' ')} {gib(sharing * size)}"
            for name, size in estimate.parts().items()
            if size and name in ("parameters", "gradients", "optimizer", "teacher_head")
        ]
        problem = (
            f"the student needs {gib(certain)} of memory to train ({', '.join(parts)}), but only "
            f"{gib(limit)} is free on {free.device}; choose a smaller student, set student.lora"
            + ("" if free.is_host else ", raise device.count")
            + (", or choose another teacher.representation" if estimate.teacher_head else "")
        )
        return Fit(whole, limit, problem=problem)
    if whole > limit:
        warning = (
            f"the run may need {gib(whole)} of memory (activations "
            f"{gib(sharing * estimate.activations)}), but only {gib(limit)} is free on "
            f"{free.device}; lower batch.micro_batch_sequences, or set "
            "device.activation_checkpointing"
        )
        return Fit(whole, limit, warning=warning)
    answers = processes * estimate.answers
    if not free.is_host and answers > free.host_bytes:
        warning = (
            f"prefetched teacher answers may need {gib(answers)}, but only "
            f"{gib(free.host_bytes)} of host memory is free; lower teacher.prefetch_steps"
        )
        return Fit(whole, limit, warning=warning)
    return Fit(whole, limit)


def free_host_bytes(cgroup: Path = _CGROUP) -> int:
    """Returns the machine's free memory, or what this process's container may still use of it."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit ("max"), or no container
        return free
    # The kernel gives back pages of files that were read once.
    return min(free, max(0, limit - used + int(stat.get("inactive_file", 0))))


def _shared(num_bytes: int, devices: int) -> int:
    return -(-num_bytes // devices)
