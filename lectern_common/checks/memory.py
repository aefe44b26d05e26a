"""What a run needs of a device's memory, part by part; does it fit into what is free?

What is certain and does not fit is refused; if activations may be too much, it is said.

Legend: P parameters, of which T are trained; L layers, h hidden size, m width of the MLP, q and k
widths of queries and keys, a heads; V vocabulary, S tokens of a row, B rows of a micro-batch, n
tokens of a chunk, R devices that share the run; O parameters in no layer (embedding, norm, head),
Y those of the largest layer.

    parameters   4 P / R                   float32
    gradients    4 T / R                   float32
    optimizer    8 T / R                   AdamW's two moments
    gathered     4 (O + Y)                 with R > 1: what is whole on each device as it
                                           computes, beside its share
    activations  as activation_bytes says
    objective    4 (4 n V + V h)           a chunk's logits and what is made of them; the head's
                                           gradient
    teacher head w V D                     with `hidden`; w 4 on the CPU, as stored elsewhere
    answers      bytes of a step's answers, for each step asked ahead and the one at work

The first three and the head are there at every optimizer step, so they are certain. Activations are
gone by then, so the total is more than the tensors of the peak: 1.07 to 1.20 times them for Qwen2
of 28 M parameters (benchmarks/trainer/memory_estimate.py). On the CPU a process holds up to twice
its tensors, because glibc keeps what is freed. Gradients of what is gathered come when the chunk's
logits are gone: two ranks took 1 / 1.11 and 1 / 1.27 of what is said here.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from lectern_common.words import gib

FLOAT32_BYTES = 4
ADAMW_BYTES = 8
# [n, V] tensors that the objective has at one time: the student's logits and the teacher's, and in
# passes over a few rows those of the cross entropy and the divergence, together at most as much.
CHUNK_TENSORS = 4
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class ModelShape:
    """What the arithmetic needs to know of a student.

    Attributes:
        num_parameters: trained and frozen, tied ones once.
        num_trainable: those with a gradient.
        mlp_size: width of the MLP, times the experts that a token goes through.
        query_size: heads times their width; `key_size` the same of keys, or of values.
        num_outside: O, parameters that are in no layer.
        num_largest_layer: Y, parameters of the largest layer.
        keeps_scores: attention keeps its [heads, S, S] scores for the backward pass: no fused
            kernel, or dropout on them.
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


@dataclass(frozen=True)
class Computation:
    """How a device computes one micro-batch.

    Attributes:
        sequences: rows of a micro-batch; `seq_len` tokens each.
        compute_bytes: of a number in the compute dtype: 4 or 2.
        checkpointing: activations of a layer are computed again in the backward pass.
        chunk_tokens: tokens whose logits exist at one time.
        devices: that share parameters, gradients and moments.
        head_bytes: of the teacher's output head on the device; 0 without one.
        answer_bytes: of the teacher's answers for one step of one device.
        steps_ahead: that answers are asked for.
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
    """Bytes on each device; `answers` are in the host's memory."""

    parameters: int
    gradients: int
    optimizer: int
    teacher_head: int
    gathered: int
    activations: int
    objective: int
    answers: int

    @property
    def certain(self) -> int:
        """What is there at every optimizer step, whatever is computed how."""
        return self.parameters + self.gradients + self.optimizer + self.teacher_head

    @property
    def on_device(self) -> int:
        """All but the answers."""
        return self.certain + self.gathered + self.activations + self.objective

    @property
    def total(self) -> int:
        """With the answers: what a run on the CPU needs."""
        return self.on_device + self.answers

    def parts(self) -> dict[str, int]:
        """Returns the named parts, in order."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


def estimate_memory(shape: ModelShape, computed: Computation) -> MemoryEstimate:
    """Returns what a device needs for one step of a run."""
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
    )


def activation_bytes(shape: ModelShape, computed: Computation) -> int:
    """Returns what autograd keeps of a micro-batch's forward until its backward has passed.

    Counted tensor by tensor over a decoder layer with RMSNorm, rotary embedding, fused attention
    and gated MLP, as transformers writes it (Korthikanti et al. 2022, section 4, count a GPT layer
    in the same way). Numbers a token and layer:

        6 h        input, normalised and scaled, of each of the two norms
        2 q + 2 k  what attention takes and gives
        4 m        gate, its SiLU, up, and their product
        a          attention's log-sum-exp; 2 a S more where it keeps its scores

    In 16 bits the 4 h of the norms stay float32, each of q, k, v, gate and up casts its input
    anew (5 h), and the weights of the layers are kept as cast. With checkpointing a layer keeps h,
    and one layer at a time its whole. The embedding and the last norm keep 3 h, and the valid
    positions' hidden states and their gradient are 2 h.

    Within 12 % of what is kept for Qwen, Llama and OLMo, a factor of 1.7 for GPT-2, OPT, Gemma, Phi
    and Mixtral, of 2.3 for layers with a state space (tests/student_trainer/student/test_shape.py).
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
    """Bytes that a run may take, what it already holds included.

    Attributes:
        device: its name, "cpu" or "cuda:0".
        device_bytes: of each device.
        host_bytes: of the machine; on the CPU the same memory.
    """

    device: str
    device_bytes: int
    host_bytes: int

    @property
    def is_host(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True)
class Fit:
    """`problem` is why the run cannot work, `warning` why it may not; both say what to set."""

    needed_bytes: int
    free_bytes: int
    problem: str | None = None
    warning: str | None = None


def memory_fit(estimate: MemoryEstimate, free: FreeMemory, processes: int = 1) -> Fit:
    """Returns whether an estimate fits.

    Args:
        estimate: of one device.
        free: what there is.
        processes: ranks that share the host's memory, and the device's where that is the host.
    """
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
            f"the student takes {gib(certain)} of memory to train ({', '.join(parts)}), and "
            f"{gib(limit)} are free on {free.device}; take a smaller student, set student.lora"
            + ("" if free.is_host else ", raise device.count")
            + (", or take another teacher.representation" if estimate.teacher_head else "")
        )
        return Fit(whole, limit, problem=problem)
    if whole > limit:
        warning = (
            f"the run may need {gib(whole)} of memory ({gib(sharing * estimate.activations)} of "
            f"it activations), and {gib(limit)} are free on {free.device}; lower "
            "batch.micro_batch_sequences, or set device.activation_checkpointing"
        )
        return Fit(whole, limit, warning=warning)
    answers = processes * estimate.answers
    if not free.is_host and answers > free.host_bytes:
        warning = (
            f"the teacher's answers for coming steps may take {gib(answers)}, and "
            f"{gib(free.host_bytes)} of the host's memory are free; lower teacher.prefetch_steps"
        )
        return Fit(whole, limit, warning=warning)
    return Fit(whole, limit)


def free_host_bytes(cgroup: Path = _CGROUP) -> int:
    """Returns what the machine has free, or what this process's container may still take."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit ("max"), or no container
        return free
    # Pages of files that were read once are given back when they are needed.
    return min(free, max(0, limit - used + int(stat.get("inactive_file", 0))))


def _shared(num_bytes: int, devices: int) -> int:
    return -(-num_bytes // devices)
