"""The memory that this process holds, as every metrics line tells it."""

import psutil
import torch


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Returns memory/rss_bytes and, on CUDA, memory/cuda_peak_bytes (tensors, since the start)."""
    metrics: dict[str, float] = {"memory/rss_bytes": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        metrics["memory/cuda_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return metrics
