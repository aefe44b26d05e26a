"""Checks whether a model can keep the documents of a packed row apart, given position ids.

Position ids that restart at 0 tell an attention model of transformers which tokens belong together,
and it masks the rest. A model that carries a state along (Mamba, and those that mix its layers with
attention) or computes positions only from distances (Bloom) ignores them. No list of architectures
stays complete, so each model is tested.
"""

import torch

from lectern_models.body_and_head import BodyAndHead

# Lengths of the test documents: the last begins late, one is a single token.
_DOCUMENTS = (5, 1, 8, 3)
# Share of the largest hidden state. A leak from another document is far larger.
_TOLERANCE = 1e-3


@torch.no_grad()
def packing_probe(parts: BodyAndHead, vocab_size: int) -> str | None:
    """Returns None if each document of a row gives the same result as by itself, else the reason.

    Costs a few short forwards. Dropout must be off.
    """
    device = parts.projection.weight.device
    generator = torch.Generator().manual_seed(0)
    documents = [
        torch.randint(vocab_size, (1, length), generator=generator).to(device)
        for length in _DOCUMENTS
    ]
    positions = [torch.arange(length, device=device)[None] for length in _DOCUMENTS]
    try:
        together = parts.hidden_states(torch.cat(documents, 1), torch.cat(positions, 1))[0].float()
        alone = torch.cat([parts.hidden_states(ids)[0] for ids in documents]).float()
    except (TypeError, IndexError, ValueError, RuntimeError) as error:
        return f"{type(parts.body).__name__} does not take position ids: {error}"
    difference = (together - alone).abs().max() / alone.abs().max()
    if bool(difference <= _TOLERANCE):  # false if it is not a number
        return None
    return (
        f"{type(parts.body).__name__} lets a document see the one before it (hidden states differ "
        f"by {difference.item():.2g} of the largest)"
    )
