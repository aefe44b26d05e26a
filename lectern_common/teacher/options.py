"""The options of the teacher server: one table, of which its parser and `lectern up` are made.

Only words: what reads a value is in teacher_server/options.py, and the defaults of limits and
sharing stand in their dataclasses (teacher_server/rpc/limits.py, sharing.py).
"""

from dataclasses import dataclass
from typing import Literal, get_args

EngineName = Literal["transformers", "fixture"]

MODES = {
    "independent": "an answer's bytes depend on its own sequence alone",
    "throughput": "batched with its neighbours: answers agree up to rounding",
}
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0

Kind = Literal["text", "path", "flag", "positive", "size", "seconds", "weights", "quotas"]
"""What an option takes: text; a path; nothing; a whole number of 1 or more, or of 0 or more; a
number of 0 or more; PATTERN=NUMBER as often as wanted, a number within the weights or above 0."""


@dataclass(frozen=True)
class TeacherOption:
    """One option of `lectern teacher serve`.

    Attributes:
        name: in a program, such as batch_tokens.
        help: "{default}" in it stands for the default.
        kind: what it takes.
        default: None means that it may be left out, or that a dataclass of the server has it.
        choices: the only values that it takes; empty means any.
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
        """Returns it as it is typed, such as --batch-tokens."""
        return "--" + self.name.replace("_", "-")


MODEL_OPTIONS = (
    TeacherOption(
        "model", "a model folder, a .gguf file, either under the models root, or a hub id"
    ),
    TeacherOption("revision", "hub commit, tag or branch; which commit it is, is shown"),
    TeacherOption(
        "home",
        "whose models folder is the models root; default: LECTERN_HOME, else ~/.lectern",
        kind="path",
        metavar="DIR",
    ),
    TeacherOption("gguf_file", "GGUF file in the folder, or in the hub's model, to load"),
    TeacherOption(
        "engine",
        "fixture: no model, the most likely token is the last one; for trying things out",
        default="transformers",
        choices=get_args(EngineName),
    ),
    TeacherOption("vocab_size", "of the fixture", kind="positive", metavar="N"),
    TeacherOption(
        "dtype",
        "what the model computes in; auto: as stored",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
    ),
    TeacherOption(
        "device",
        "cpu, cuda, cuda:1, or balanced: layer by layer over all GPUs; auto takes a GPU where "
        "there is one",
        default="auto",
    ),
    TeacherOption(
        "quantization",
        "of the body's weights, by bitsandbytes",
        default="none",
        choices=("none", "int8", "int4"),
    ),
    TeacherOption(
        "attention",
        "what computes attention; auto: transformers' choice",
        default="auto",
        choices=("auto", "sdpa", "eager", "flash_attention_2"),
    ),
    TeacherOption("compile", "torch.compile the body; for --mode throughput", kind="flag"),
    TeacherOption(
        "threads", "CPU threads; torch's default if left out", kind="positive", metavar="N"
    ),
)
ADDRESS_OPTIONS = (
    TeacherOption(
        "bind", "host:port, default {default}; port 0: a free one", default="127.0.0.1:50051"
    ),
    TeacherOption(
        "token_file",
        "file with the bearer token that clients must send; beyond loopback this or "
        "--tls-client-ca is required",
        kind="path",
    ),
    TeacherOption("tls_cert", "the server's certificate (PEM); with --tls-key", kind="path"),
    TeacherOption("tls_key", "its private key (PEM)", kind="path"),
    TeacherOption(
        "tls_client_ca", "take only clients with a certificate of this CA (PEM)", kind="path"
    ),
    TeacherOption("metrics_bind", "host:port of Prometheus' /metrics, with the same token and TLS"),
    TeacherOption("port_file", "written with the bound host:port once it is ready", kind="path"),
    TeacherOption(
        "drain_seconds",
        "for calls in flight after SIGTERM; default: {default:g}",
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
        "tokens of a forward; chosen by the device if left out",
        kind="positive",
        metavar="N",
    ),
    TeacherOption(
        "cache_bytes",
        "memory for computed rows, 0 for none; default: {default:,}",
        kind="size",
        metavar="N",
    ),
    TeacherOption("cache_folder", "keep computed rows on disk too, across restarts", kind="path"),
    TeacherOption(
        "cache_folder_bytes", "for each model; default: {default:,}", kind="positive", metavar="N"
    ),
    TeacherOption(
        "run_weight",
        f"share of the runs whose id matches, {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, where others have "
        "1; the first match holds",
        kind="weights",
        metavar="PATTERN=WEIGHT",
    ),
    TeacherOption(
        "run_quota",
        "tokens a minute of each run whose id matches; the first match holds",
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
"""Every option, by its name in a program."""
