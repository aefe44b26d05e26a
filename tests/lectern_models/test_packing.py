"""Which models keep the documents of a row apart."""

from pathlib import Path

import pytest
import torch

from lectern_models.body_and_head import BodyAndHead, split
from lectern_models.loading import load_causal_lm
from lectern_models.packing import packing_probe
from tests.support.models import ARCHITECTURES, write_tiny_model

VOCAB_SIZE = 97
# These carry a state or positions from document to document, whatever the position ids.
CANNOT = {"opt", "falcon_h1"}


def parts_of(folder: Path, architecture: str, attention: str = "sdpa") -> BodyAndHead:
    model = load_causal_lm(write_tiny_model(folder, architecture), "float32", "cpu")
    if attention != "sdpa":
        model.set_attn_implementation(attention)
    model.train(False)
    return split(model)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.filterwarnings("ignore:.*falling back to its reference")
def test_the_probe_finds_which_architectures_keep_documents_apart(
    tmp_path: Path, architecture: str
) -> None:
    reason = packing_probe(parts_of(tmp_path, architecture), VOCAB_SIZE)
    assert (reason is not None) == (architecture in CANNOT)
    if reason is not None:
        assert "lets a document see the one before it" in reason


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hidden_states_of_a_packed_row_equal_those_of_each_document_by_itself(
    tmp_path: Path, attention: str
) -> None:
    parts = parts_of(tmp_path, "qwen2", attention)
    draw = torch.Generator().manual_seed(5)
    lengths = [7, 1, 12, 4]
    documents = [torch.randint(VOCAB_SIZE, (2, n), generator=draw) for n in lengths]
    positions_1S = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        together = parts.hidden_states(torch.cat(documents, 1), positions_1S.expand(2, -1))
        alone = torch.cat([parts.hidden_states(ids) for ids in documents], 1)
        whole = parts.hidden_states(torch.cat(documents, 1))
    allowed = 1e-6 * alone.abs().max()
    assert (together - alone).abs().max() <= allowed
    assert (whole[:, :7] - alone[:, :7]).abs().max() <= allowed
    assert (whole[:, 7:] - alone[:, 7:]).abs().amax(-1).min() > 1e-3


def test_a_model_without_position_ids_is_reported(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, "qwen2")

    class NoPlaces(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
            return parts.body(input_ids=input_ids, use_cache=use_cache)

    deaf = BodyAndHead(NoPlaces(), parts.projection, parts.transform)
    reason = packing_probe(deaf, VOCAB_SIZE)
    assert reason is not None and "NoPlaces does not take position ids" in reason
