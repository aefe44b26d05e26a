"""How runs share one model: what is kept, what is computed together, who gets how much."""

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from teacher_server.cache import Cache
from teacher_server.disk_cache import DiskCache
from teacher_server.engine import ModelFacts

# Of a forward, padding included. A CPU core is at its best while a batch stays in its cache; a GPU
# needs some ten thousand tokens to be busy.
_BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}


@dataclass(frozen=True)
class Sharing:
    """Settings; the defaults are those of the command line.

    Attributes:
        batch_tokens: None chooses by device.
        cache_bytes: of memory; 0 keeps nothing.
        cache_folder: of the second tier, for any number of models; None: no second tier.
        cache_folder_bytes: over the files of one model.
        weights: shell pattern of run ids -> share; see FairShare.
        quotas: shell pattern of run ids -> tokens a minute; see Quotas.
    """

    batch_tokens: int | None = None
    cache_bytes: int = 1 << 30
    cache_folder: Path | None = None
    cache_folder_bytes: int = 20 << 30
    weights: Mapping[str, float] = field(default_factory=dict)
    quotas: Mapping[str, float] = field(default_factory=dict)

    def batch_tokens_for(self, facts: ModelFacts) -> int:
        """Returns the tokens of a forward."""
        return self.batch_tokens or _BATCH_TOKENS[_device_type(facts)]

    def cache_for(self, facts: ModelFacts) -> Cache:
        """Returns the cache of one model.

        Raises:
            Misconfigured: the folder cannot be used.
        """
        if self.cache_folder is None:
            return Cache(self.cache_bytes)
        # Rows of another mode or kind of device differ in their last bits.
        parts = (facts.fingerprint, facts.mode, _device_type(facts))
        name = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]
        return Cache(self.cache_bytes, DiskCache(self.cache_folder / name, self.cache_folder_bytes))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `sharing_of` reads."""
    default = Sharing()
    add = parser.add_argument
    add("--batch-tokens", type=_positive, help="of a forward; chosen by the device if left out")
    add(
        "--cache-bytes",
        type=_not_negative,
        default=default.cache_bytes,
        help="memory for computed rows, 0 for none; default: %(default)s",
    )
    add("--cache-folder", type=Path, help="keep computed rows on disk too, across restarts")
    add(
        "--cache-folder-bytes",
        type=_positive,
        default=default.cache_folder_bytes,
        help="default: %(default)s",
    )
    add(
        "--run-weight",
        type=_pattern_and_number,
        action="append",
        default=[],
        metavar="PATTERN=WEIGHT",
        help="share of runs whose id matches, relative to 1; the first match holds",
    )
    add(
        "--run-quota",
        type=_pattern_and_number,
        action="append",
        default=[],
        metavar="PATTERN=TOKENS",
        help="tokens a minute of each run whose id matches; the first match holds",
    )


def sharing_of(options: argparse.Namespace) -> Sharing:
    """Returns the settings of a parsed command line."""
    return Sharing(
        batch_tokens=options.batch_tokens,
        cache_bytes=options.cache_bytes,
        cache_folder=options.cache_folder,
        cache_folder_bytes=options.cache_folder_bytes,
        weights=dict(options.run_weight),
        quotas=dict(options.run_quota),
    )


def _device_type(facts: ModelFacts) -> str:
    return "cpu" if facts.device.startswith("cpu") else "cuda"


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def _not_negative(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return int(text)


def _pattern_and_number(text: str) -> tuple[str, float]:
    pattern, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not equals or not pattern or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not PATTERN=NUMBER, like coder-*=2")
    return pattern, value
