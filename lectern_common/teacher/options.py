"""The options of the teacher server: one table for its parser and for `lectern up`.

It holds only text: teacher_server/options.py parses the values, and the defaults of limits and
sharing are in their dataclasses (teacher_server/rpc/limits.py, sharing.py).
"""

from dataclasses import dataclass
from typing import Literal, get_args

EngineName = Literal["transformers", "fixture"]

MODES = {
    "independent": "an answer's bytes depend only on its own sequence",
    "throughput": "sequences are batched together; answers agree up to rounding",
}
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0

Kind = Literal["text", "path", "flag", "positive", "size", "seconds", "weights", "quotas"]
"""What an option accepts: text; a path; nothing; an integer >= 1, or >= 0; a number >= 0; and,
repeatable, PATTERN=NUMBER with a number between the weights, or > 0."""


@dataclass(frozen=True)
class TeacherOption:
    """One option of `lectern teacher serve`.

    Attributes:
        name: its name in programs, such as batch_tokens.
        help: "{default}" in it stands for the default.
        kind: what it accepts.
        default: None means that it is optional, or that a dataclass of the server has the default.
        choices: the only values that it accepts; empty means any.
        metavar: what the help calls its value; None means its name.
    """

    name: str
    help: str | None = None
    kind: Kind = "text"
    default: str | float | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None

    @property
    def flag(self) -> str:
        """Returns the option as typed, such as --batch-tokens."""
        return "--" + self.name.replace("_", "-")


MODEL_OPTIONS = (
    TeacherOption(
        "model", "a model folder or .gguf file (also under the models root), or a hub id"
    ),
    TeacherOption("revision", "hub commit, tag or branch; the resolved commit is shown"),
    TeacherOption(
        "home",
        "folder whose models/ is the models root; default: LECTERN_HOME, else ~/.lectern",
        kind="path",
        metavar="DIR",
    ),
    TeacherOption("gguf_file", "GGUF file to load from the folder or the hub repository"),
    TeacherOption(
        "engine",
        "fixture: no model, predicts the last token again; for trying things out",
        default="transformers",
        choices=get_args(EngineName),
    ),
    TeacherOption("vocab_size", "vocabulary size of the fixture", kind="positive", metavar="N"),
    TeacherOption(
        "dtype",
        "compute dtype; auto: as stored",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
    ),
    TeacherOption(
        "device",
        "cpu, cuda, cuda:1, or balanced: layer by layer over all GPUs; auto: a GPU if available",
        default="auto",
    ),
    TeacherOption(
        "tensor_parallel",
        "share the model among N GPUs of this host, every matrix cut into N slices; on the CPU "
        "among N processes; default: {default}",
        kind="positive",
        default=1,
        metavar="N",
    ),
    TeacherOption(
        "quantization",
        "quantise the body's weights with bitsandbytes",
        default="none",
        choices=("none", "int8", "int4"),
    ),
    TeacherOption(
        "attention",
        "attention implementation; auto: transformers' choice",
        default="auto",
        choices=("auto", "sdpa", "eager", "flash_attention_2"),
    ),
    TeacherOption("compile", "torch.compile the body; for --mode throughput", kind="flag"),
    TeacherOption("threads", "CPU threads; default: torch's choice", kind="positive", metavar="N"),
)
ADDRESS_OPTIONS = (
    TeacherOption(
        "bind",
        "host:port, default: {default}; 0.0.0.0: every IPv4 address that this machine has at the "
        "start, [::]: every address; port 0: any free port; or "
        "unix:/path, a socket file that only this user can open",
        default="127.0.0.1:50051",
    ),
    TeacherOption(
        "token_file",
        "file with the bearer token that clients must send; this or --tls-client-ca is required "
        "unless --bind is loopback",
        kind="path",
    ),
    TeacherOption("tls_cert", "the server's certificate (PEM); with --tls-key", kind="path"),
    TeacherOption("tls_key", "its private key (PEM)", kind="path"),
    TeacherOption(
        "tls_client_ca", "accept only clients with a certificate of this CA (PEM)", kind="path"
    ),
    TeacherOption(
        "http",
        "host:port on which trainers that speak vLLM's or SGLang's HTTP may ask for scores, with "
        "the same token and TLS; see docs/teacher.md",
        metavar="HOST:PORT",
    ),
    TeacherOption("metrics_bind", "host:port for Prometheus /metrics, with the same token and TLS"),
    TeacherOption(
        "port_file", "file to write the bound host:port to when the server is ready", kind="path"
    ),
    TeacherOption(
        "drain_seconds",
        "time for calls in flight to finish after SIGTERM; default: {default:g}",
        kind="seconds",
        default=60.0,
        metavar="SECONDS",
    ),
    TeacherOption("log_level", default="info", choices=("debug", "info", "warning", "error")),
)
SHARING_OPTIONS = (
    TeacherOption(
        "mode",
        "; ".join(f"{name}: {meaning}" for name, meaning in MODES.items()),
        default="independent",
        choices=tuple(MODES),
    ),
    TeacherOption(
        "batch_tokens",
        "tokens per forward pass; default: depends on the device",
        kind="positive",
        metavar="N",
    ),
    TeacherOption(
        "cache_bytes",
        "memory for cached rows, 0 for none; default: {default:,}",
        kind="size",
        metavar="N",
    ),
    TeacherOption("cache_folder", "also cache rows on disk, across restarts", kind="path"),
    TeacherOption(
        "cache_folder_bytes",
        "disk space per model; default: {default:,}",
        kind="positive",
        metavar="N",
    ),
    TeacherOption(
        "run_weight",
        f"weight of runs whose id matches, {MIN_WEIGHT:g} to {MAX_WEIGHT:g} (others have 1); the "
        "first match applies",
        kind="weights",
        metavar="PATTERN=WEIGHT",
    ),
    TeacherOption(
        "run_quota",
        "tokens per minute for each run whose id matches; the first match applies",
        kind="quotas",
        metavar="PATTERN=TOKENS",
    ),
)
LIMIT_OPTIONS = tuple(
    TeacherOption(name, "default: {default:,}", kind="positive", metavar="N")
    for name in (
        *("max_sequences", "max_tokens", "max_sequence_tokens", "max_top_k", "max_reply_bytes"),
        *("max_queued_requests", "max_draws"),
    )
)
TEACHER_OPTIONS = {
    option.name: option
    for option in (*MODEL_OPTIONS, *ADDRESS_OPTIONS, *SHARING_OPTIONS, *LIMIT_OPTIONS)
}
"""Every option, by its name in programs."""
