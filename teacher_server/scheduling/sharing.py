"""How runs share one model: batch size, caches, weights and quotas."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from teacher_server.engine.seam import ModelFacts
from teacher_server.scheduling.cache import Cache
from teacher_server.scheduling.disk_cache import DiskCache

# Tokens per forward, padding included. A CPU core is fastest while a batch fits its cache; a GPU
# needs some ten thousand tokens to be busy.
_BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}


@dataclass(frozen=True)
class Sharing:
    """Settings; the defaults are those of the command line.

    Attributes:
        batch_tokens: tokens per forward; None chooses by device.
        cache_bytes: of memory; 0 keeps nothing.
        cache_folder: the disk cache, for any number of models; None means no disk cache.
        cache_folder_bytes: limit of the disk cache, for each model.
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
        """Returns the tokens per forward."""
        return self.batch_tokens or _BATCH_TOKENS[_device_type(facts)]

    def cache_for(self, facts: ModelFacts) -> Cache:
        """Returns the cache of one model.

        Raises:
            Misconfigured: the folder cannot be used.
        """
        if self.cache_folder is None:
            return Cache(self.cache_bytes)
        # Rows computed in any other way differ in their last bits.
        parts = (facts.fingerprint, facts.mode, facts.device, facts.arithmetic)
        name = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]
        return Cache(self.cache_bytes, DiskCache(self.cache_folder / name, self.cache_folder_bytes))


def _device_type(facts: ModelFacts) -> str:
    return "cpu" if facts.device.startswith("cpu") else "cuda"
