"""What a teacher says about itself: which weights, in what form, and when two answer alike."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from lectern_common.errors import Misconfigured
from lectern_common.tokens.tokenizer_map import read_tokenizer_map
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_common.wire.formats import Representation
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.seam import ModelFacts, SequenceAsk, base_ask
from teacher_server.engine.transformers import EngineSettings
from teacher_server.rpc.limits import Limits
from teacher_server.rpc.replies import model
from tests.support.gguf_models import write_gguf
from tests.support.models import write_tiny_model
from tests.support.tokenizer_files import write_tokenizer

# bitsandbytes itself still uses it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")


def facts(model: Path, gguf_file: str | None = None, **options: Any) -> ModelFacts:
    settings = EngineSettings(device="cpu", **options)
    return transformers_engine.load(str(model), settings, gguf_file=gguf_file).facts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    return write_tiny_model(path, hidden=64, tokenizer=True, vocab_size=320)


def test_the_weights_hash_ignores_how_they_are_loaded_and_the_fingerprint_does_not(
    folder: Path,
) -> None:
    loaded = {
        name: facts(folder, **options)
        for name, options in {
            "plain": {},
            "bfloat16": {"dtype": "bfloat16"},
            "int8": {"quantization": "int8"},
            "int4": {"quantization": "int4"},
            "eager": {"attention": "eager"},
        }.items()
    }
    digest = weights_sha256(safetensors_files(folder))
    assert {each.weights_sha256 for each in loaded.values()} == {digest}
    assert len({each.fingerprint for each in loaded.values()}) == len(loaded)
    assert [each.quantization for each in loaded.values()] == [
        "none",
        "none",
        "int8",
        "int4",
        "none",
    ]
    assert {each.num_parameters for each in loaded.values()} == {loaded["plain"].num_parameters}
    for each in loaded.values():
        assert each.not_offered["hidden"] is None
        assert each.device == "cpu"


def test_the_fingerprint_ignores_folder_and_mode(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    own, copied = facts(folder), facts(tmp_path / "copy")
    assert own.fingerprint == copied.fingerprint
    assert (own.model_id, copied.model_id) == ("tiny", "copy")
    assert facts(folder, mode="throughput").fingerprint == own.fingerprint


def test_a_gguf_file_is_identified_by_its_name_tokens_and_weights(
    folder: Path, tmp_path: Path
) -> None:
    plain = facts(folder)
    ggufs = {}
    for kind in ("f32", "bf16", "q8_0"):
        write_gguf(folder, tmp_path / f"{kind}.gguf", kind)
        ggufs[kind] = facts(tmp_path / f"{kind}.gguf", dtype="float32")
    in_folder = facts(tmp_path, gguf_file="q8_0.gguf", dtype="float32")

    for kind, each in ggufs.items():
        assert each.model_id == f"{kind}.gguf"
        assert each.quantization == "gguf"
        assert each.tokens == read_tokenizer_map(folder / "tokenizer.json")
        assert each.not_offered["hidden"] is None
        assert each.logit_width == 320
        assert each.max_positions == 128
        assert (each.weights_sha256 == plain.weights_sha256) == (kind != "q8_0")
    assert in_folder == ggufs["q8_0"]
    assert len({plain.fingerprint} | {each.fingerprint for each in ggufs.values()}) == 4


def test_a_file_with_different_weights_has_a_different_fingerprint(
    folder: Path, tmp_path: Path
) -> None:
    other = write_tiny_model(tmp_path / "m", hidden=64, tokenizer=True, vocab_size=320, seed=1)
    write_gguf(folder, tmp_path / "one.gguf", "q8_0")
    write_gguf(other, tmp_path / "other.gguf", "q8_0")
    one, two = facts(tmp_path / "one.gguf"), facts(tmp_path / "other.gguf")
    assert one.fingerprint != two.fingerprint
    assert one.weights_sha256 != two.weights_sha256


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quantization": "int8", "mode": "throughput"}, "depend on other requests"),
        ({"compiled": True}, "use it with --mode throughput"),
        ({"compiled": True, "mode": "throughput", "quantization": "int4"}, "unquantised model"),
        ({"attention": "flash_attention_2"}, "needs a CUDA device and the package flash-attn"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    folder: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(Misconfigured, match=says):
        facts(folder, **options)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of torch's jit
def test_a_compiled_body_answers_within_rounding_and_says_so(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, layers=1)
    options: dict[str, Any] = {"device": "cpu", "mode": "throughput"}
    plain = transformers_engine.load(str(folder), EngineSettings(**options))
    compiled = transformers_engine.load(str(folder), EngineSettings(compiled=True, **options))
    assert compiled.facts.fingerprint != plain.facts.fingerprint
    ids = np.arange(1, 30, dtype=np.uint32)
    ask = SequenceAsk(ids, np.ones(29, bool), 97, Representation("hidden"), 1.0)
    base = base_ask(ask, plain.facts)
    ours, theirs = (
        np.frombuffer(engine.score([base, base])[1].payload, "<f4") for engine in (compiled, plain)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert (ours != theirs).any()  # it was compiled


@pytest.mark.parametrize(("begins_with", "count"), [("<s>", 1), (None, 0)])
def test_what_the_tokenizer_puts_before_a_text_is_told(
    tmp_path: Path, begins_with: str | None, count: int
) -> None:
    write_tiny_model(tmp_path / "m", hidden=64, vocab_size=320)
    tokenizer = write_tokenizer(tmp_path / "m", special=("<s>",), begins_with=begins_with)
    told = model(facts(tmp_path / "m"), Limits())
    assert told.HasField("text_beginning")
    assert list(told.text_beginning.token_ids) == [tokenizer.token_to_id("<s>")] * count


def test_a_model_without_a_tokenizer_says_nothing_about_texts(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "m", hidden=64, vocab_size=320)
    told = model(facts(tmp_path / "m"), Limits())
    assert not told.HasField("text_beginning")
    assert told.num_tokens == 320


def test_tokens_of_a_vocabulary_of_another_kind_are_known(folder: Path, tmp_path: Path) -> None:
    """Without a tokenizer.json nothing was compared, and every check passed."""
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.json"
    Tokenizer.from_file(str(path)).model.save(str(tmp_path / "m"))
    path.unlink()
    assert facts(tmp_path / "m").tokens == facts(folder).tokens
    assert facts(tmp_path / "m").fingerprint == facts(folder).fingerprint


def test_tokens_behind_the_last_logit_do_not_count(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "m", hidden=64, vocab_size=300)
    tokenizer = write_tokenizer(tmp_path / "m")
    number = tokenizer.get_vocab_size()
    assert number == 300
    write_tokenizer(tmp_path / "m", files={"added_tokens.json": {"[PAD]": number}})
    known = facts(tmp_path / "m")
    assert known.tokens is not None and known.tokens["[PAD]"] == number
    assert known.num_tokens == number
