"""The startup banner, printed when the server is ready."""

import shutil
from pathlib import Path

from lectern_common.teacher.options import MODES
from lectern_common.wire.formats import FORMATS
from lectern_common.words import layout
from teacher_server.engine.seam import ModelFacts
from teacher_server.rpc.limits import Limits


def ready_text(
    facts: ModelFacts,
    limits: Limits,
    address: str,
    callers: str,
    encryption: str,
    http_url: str | None = None,
    metrics_url: str | None = None,
) -> str:
    """Returns a few aligned lines: the model, where it runs, what it offers, its limits.

    Args:
        callers: who may call.
        encryption: what protects the connection.
        http_url: where other trainers ask over HTTP; None if they cannot.
        metrics_url: what Prometheus scrapes; None if metrics are not served.
    """
    reasons = {name: facts.why_not(name) for name in FORMATS}
    offered = [name for name, reason in reasons.items() if reason is None]
    missing = [(name, reason) for name, reason in reasons.items() if reason is not None]
    revision = f" at {facts.revision}" if facts.revision else ""
    lines = [
        ("model", f"{facts.model_id}{revision}"),
        ("parameters", f"{facts.num_parameters:,}"),
        ("device", facts.device + layout(facts.tensor_parallel)),
        ("dtype", facts.dtype + _stored_as(facts.quantization)),
        ("speed", _speed(facts.measured_tokens_per_second)),
        ("engine", f"{facts.engine}, {facts.mode}: {MODES[facts.mode]}"),
        ("address", address),
        ("callers", callers),
        ("encryption", encryption),
        ("http", http_url or "not served; set --http to serve other trainers"),
        ("metrics", metrics_url or "not served; set --metrics-bind to serve them"),
        ("offers", ", ".join(offered)),
        *(("", f"not {name}: {reason}") for name, reason in missing),
        (
            "limits",
            f"{limits.max_sequences} sequences, {limits.max_tokens} tokens, "
            f"{limits.max_sequence_tokens} tokens per sequence, {limits.max_reply_bytes >> 20} MiB "
            f"per reply, {limits.max_queued_requests} requests at once",
        ),
        ("fingerprint", facts.fingerprint),
    ]
    body = "\n".join(f"  {name:<12} {text}" for name, text in lines)
    return f"Lectern teacher is ready\n{body}"


def _stored_as(quantization: str) -> str:
    return {
        "none": "",
        "gguf": ", read from a GGUF file",
    }.get(quantization, f", the body's weights in {quantization}")


def _speed(tokens_per_second: float) -> str:
    if not tokens_per_second:
        return "not measured"
    return f"{tokens_per_second:,.0f} tokens/s, measured on this device, without the network"


def idle_gpu_warning(device: str, cuda_available: bool, gpu_present: bool) -> str | None:
    """Returns a loud warning if a teacher runs on the CPU of a machine with a GPU, else None.

    A large teacher on the CPU seems to work, but is hundreds of times too slow.
    """
    if not device.startswith("cpu") or not (cuda_available or gpu_present):
        return None
    fix = (
        "leave --device out, or set --device cuda"
        if cuda_available
        else "this torch cannot use it: install a CUDA build of torch"
    )
    return f"WARNING: THE TEACHER RUNS ON THE CPU WHILE THIS MACHINE'S GPU IS IDLE; {fix}"


def gpu_present() -> bool:
    """Returns whether this machine has an NVIDIA driver, even if torch cannot use it."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
