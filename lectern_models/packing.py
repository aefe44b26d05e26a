"""Can a model keep the documents of a row apart, when it is told where they begin?

Position ids that begin anew tell an attention model of transformers which tokens belong together,
and it masks the rest. A model that carries a state along (Mamba, and those that mix its layers with
attention) or computes places from distances alone (Bloom) does not hear it. No list of
architectures stays complete, so the model at hand is tried.
"""

import torch

from lectern_models.body_and_head import BodyAndHead

# Lengths of the documents tried: the last begins late, one is a single token.
_DOCUMENTS = (5, 1, 8, 3)
# Of the largest hidden state. What leaks in from another document is far more.
_TOLERANCE = 1e-3


@torch.no_grad()
def packing_probe(parts: BodyAndHead, vocab_size: int) -> str | None:
    """Returns None where each document of a row comes out as it does alone, else why not.

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
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(parts.body).__name__} does not take position ids: {error}"
    difference = (together - alone).abs().max() / alone.abs().max()
    if bool(difference <= _TOLERANCE):  # not where it is not a number
        return None
    return (
        f"{type(parts.body).__name__} lets a document see the one before it (hidden states differ "
        f"by {difference.item():.2g} of the largest)"
    )
