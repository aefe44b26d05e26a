"""The settings of `lectern data generate`, with their checks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lectern_common.callers import is_loopback
from lectern_common.errors import InvalidRequest
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.words import inert_name

Way = Literal["chat", "text"]
"""How prompts travel: as chats to /chat/completions, or as text to /completions."""

ANSWERS_SUFFIX = ".jsonl"


@dataclass(frozen=True)
class GenerateSettings:
    """All settings of a generation. Errors name the option of `lectern data generate`.

    Attributes:
        inputs: files with one prompt per row, or folders of them.
        server: URL of the server; without a path, /v1 is meant.
        model: the name by which the server knows the model.
        output: a file that ends in .jsonl, for the answers; or the folder of a dataset, and the
            answers go to a file of its name and .jsonl beside it.
        tokenizer: a tokenizer.json, or a folder with one; None means that of `model`, if it names a
            folder with one.
        send: how prompts travel; "auto" means as chats where the server takes them.
        prompt_field, messages_field: where a row has its prompt; at most one is set. None, None
            means "messages" or "prompt", whichever the rows have.
        samples: answers to each prompt.
        seed: each request's own seed is made of it.
        max_tokens: of an answer; a longer one is cut there.
        temperature, top_p: None means the server's own.
        keep_cut: answers that were cut are kept.
        concurrency: requests under way at once.
        timeout_seconds: of one request.
        outage_seconds: how long the server may be away.
        include, exclude, max_fault_fraction, validation_fraction, force: see PrepareSettings.

    Raises:
        InvalidRequest: settings that do not fit together, or a number out of range.
    """

    inputs: Sequence[Path]
    server: str
    model: str
    output: Path
    tokenizer: Path | None = None
    send: Literal["auto", "chat", "text"] = "auto"
    prompt_field: str | None = None
    messages_field: str | None = None
    samples: int = 1
    seed: int = 0
    max_tokens: int = 1024
    temperature: float | None = None
    top_p: float | None = None
    keep_cut: bool = True
    concurrency: int = 16
    timeout_seconds: float = 600.0
    outage_seconds: float = 600.0
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    max_fault_fraction: float = 0.01
    validation_fraction: float = 0.01
    force: bool = False

    def __post_init__(self) -> None:
        self._require_url()
        if not self.model:
            raise InvalidRequest("--model is empty; name the model as the server does", "model")
        if not self.inputs:
            raise InvalidRequest("name files or folders with prompts", "inputs")
        if not self.output.name.isprintable():
            why = f"--output {inert_name(self.output.name)} holds a character that cannot be shown"
            raise InvalidRequest(f"{why}; choose another name", "output")
        if self.prompt_field is not None and self.messages_field is not None:
            raise InvalidRequest(
                "set --prompt-field or --messages-field, not both: a row's prompt is in one field",
                "prompt_field",
            )
        for name in ("samples", "max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"--{name.replace('_', '-')} must be at least 1", name)
        for name in ("timeout_seconds", "outage_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidRequest(f"--{name.replace('_', '-')} must be above 0", name)
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise InvalidRequest("--temperature must be at least 0", "temperature")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InvalidRequest("--top-p must be above 0 and at most 1", "top_p")
        if not 0 <= self.max_fault_fraction <= 1:
            raise InvalidRequest("--max-fault-fraction must be from 0 to 1", "max_fault_fraction")
        if not 0 <= self.validation_fraction < 1:
            raise InvalidRequest(
                "--validation-fraction must be at least 0 and below 1", "validation_fraction"
            )
        if self.makes_dataset and self.tokenizer_path is None:
            raise InvalidRequest(
                "a dataset needs the tokenizer: set --tokenizer to the model's tokenizer.json or "
                f"its folder; or end --output in {ANSWERS_SUFFIX} to write the answers only",
                "tokenizer",
            )

    def _require_url(self) -> None:
        try:
            parts = urlsplit(self.server)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port
        except ValueError:
            is_url = False
        if not is_url:
            raise InvalidRequest(
                f"--from {inert_name(self.server)} is not the URL of a server, such as "
                "http://127.0.0.1:8000/v1",
                "from",
            )
        if parts.username or parts.password:
            raise InvalidRequest(
                "--from must not hold a password; set OPENAI_API_KEY in the environment", "from"
            )
        if parts.query or parts.fragment:
            raise InvalidRequest("--from must end with its path, such as /v1", "from")

    @property
    def base_url(self) -> str:
        """The URL that /chat/completions and /completions follow."""
        is_bare = urlsplit(self.server).path in ("", "/")
        return self.server.rstrip("/") + ("/v1" if is_bare else "")

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        return is_loopback(urlsplit(self.server).hostname or "")

    @property
    def makes_dataset(self) -> bool:
        """Whether the answers are prepared at once."""
        return self.output.suffix != ANSWERS_SUFFIX

    @property
    def answers(self) -> Path:
        """The file for the answers."""
        if not self.makes_dataset:
            return self.output
        return self.output.with_name(self.output.name + ANSWERS_SUFFIX)

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer that is given, or that lies in the folder that `model` names."""
        if self.tokenizer is not None:
            return self.tokenizer
        folder = Path(self.model)
        return folder if (folder / TOKENIZER_NAME).is_file() else None

    def asked(self) -> dict[str, Any]:
        """Returns the settings on which the answers depend, by name of their options."""
        names = ("model", "seed", "max_tokens", "temperature", "top_p")
        return {name: value for name, value in asdict(self).items() if name in names}
