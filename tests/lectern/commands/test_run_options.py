"""FALSIFY-TRAIN-008: command line, schema, REST interface and documentation name the same options.

`lectern train` has no options of a run: it takes them all from the YAML file.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from control_plane.api.app import create_app
from control_plane.plane import open_plane
from control_plane.trainers.devices import Devices
from lectern_common.roots import Roots
from lectern_common.spec.page import page, tables
from tests.lectern.commands.test_dry_run import stand_in_package
from tests.support.spec_fields import spec_fields

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "run-spec.md"

# Together they set every option there is, each to what is not its default.
SPECS = [
    """
name: a
seed: 3
teacher: {address: "127.0.0.1:1", model: big, representation: top_k, top_k: 5, prefetch_steps: 1,
  deadline_seconds: 7, outage_budget_seconds: 8, token_file: t, tls_ca_file: ca,
  tls_cert_file: cert, tls_key_file: key, allow_same_weights: true,
  vocabulary: same, record_to: answers}
student: {init: org/model, revision: main, keep_every_nth_layer: 2, dtype: bfloat16,
  lora: {rank: 4, alpha: 8, dropout: 0.5, targets: [q_proj]}}
data: {path: text, seq_len: 8, validation_fraction: 0.5, attention_across_documents: false,
  max_bad_rows_fraction: 0.5}
objective: {alpha: 0.5, temperature: 3, divergence: jsd, beta: 0.25, chunk_tokens: 9}
optimizer: {learning_rate: 0.5, betas: [0.5, 0.75], weight_decay: 0.7, max_grad_norm: 0.25}
schedule: {steps: 9, warmup_steps: 4, decay: linear, final_fraction: 0.5}
batch: {sequences_per_step: 6, micro_batch_sequences: 1}
evaluation: {every_steps: 5, max_sequences: 3, patience: 2, prompts: [def], prompt_tokens: 4}
checkpoint: {every_steps: 4, keep_last: 5, keep_best: 3}
device: {kind: cpu, count: 2, max_restarts: 1, threads: 1, compile: true,
  activation_checkpointing: true}
report_to: [tensorboard]
priority: -3
group: rates
tags: [baseline]
notes: what it is for
""",
    """
name: b
teacher: {address: "127.0.0.1:1", representation: sampled, num_draws: 7}
student: {config: tiny}
data: {path: text, seq_len: 8, validation_path: held-out}
rollout: {fraction: 0.25, prompts: questions, max_new_tokens: 9, temperature: 0.5, top_p: 0.5,
  top_k: 7, samples_per_prompt: 2, stale_steps: 1, engine: local, keep: false}
""",
    """
name: f
teacher: {address: "127.0.0.1:1"}
student: {config: tiny}
data: {path: text, seq_len: 8}
rollout: {fraction: 0.5, prompt_tokens: 3}
""",
    """
name: e
teacher: {record: answers}
student: {config: tiny}
data: {path: text, seq_len: 8}
""",
    """
name: g
teachers:
  big: {address: "127.0.0.1:1", record: null, record_to: null, model: null, representation: top_k,
    top_k: 3, num_draws: null, prefetch_steps: 1, deadline_seconds: 7, outage_budget_seconds: 8,
    token_file: t, tls_ca_file: null, tls_cert_file: null, tls_key_file: null,
    vocabulary: same, allow_same_weights: true}
student: {config: tiny}
data: {seq_len: 8, sources: [{path: text, weight: 3, teacher: big, name: code},
  {path: held-out, weight: 1, teacher: null, name: rest}]}
""",
    """
name: d
student: {config: tiny}
data: {path: chats, seq_len: 8, long_chats: drop}
objective: {alpha: 1}
""",
    """
name: c
student: {config: tiny}
data: {kind: synthetic, seq_len: 8}
objective: {alpha: 1}
evaluation:
  suites: [code, "lm-eval:ours"]
  code: {problems: p.jsonl, mode: chat, samples: 3, k: [1, 3], temperature: 0.5, top_p: 0.5,
    max_new_tokens: 9, stop: [end], max_problems: 2, seconds: 1.5, memory_mib: 99, sandbox: false}
  lm_eval: {tasks_path: tasks, num_fewshot: 2, limit: 5}
  metric: lm-eval/ours/acc
  metric_goal: highest
""",
]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and name != "teachers":  # by names of one's own
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def named(schema: dict[str, Any] | None = None) -> list[str]:
    return sorted(field.name for table in tables(schema) for field in table.fields)


def test_the_documentation_is_made_of_the_schema_as_it_is_now() -> None:
    """FALSIFY-TRAIN-008: `python -m lectern_common.spec.page > docs/run-spec.md`."""
    assert PAGE.read_text() == page()


def test_the_documentation_names_every_option_once_and_says_what_it_does() -> None:
    """FALSIFY-TRAIN-008"""
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert sorted(row[0].strip("| `*") for row in rows) == sorted(spec_fields())
    for row in rows:
        assert len(row) == 4
        assert len(row[3].strip("| ")) > 5, row[0]


def test_the_rest_interface_names_the_same(tmp_path: Path) -> None:
    """FALSIFY-TRAIN-008"""
    plane = open_plane(Roots.of_home(tmp_path), devices=Devices((), max_running=1))
    with TestClient(create_app(plane), base_url="http://127.0.0.1") as client:
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert named({**schemas["RunSpec"], "$defs": schemas}) == sorted(spec_fields()) == named()


def test_the_command_line_takes_every_option(lectern, tmp_path, monkeypatch) -> None:
    """FALSIFY-TRAIN-008: what a file sets is what the run is resolved to."""
    package = stand_in_package(tmp_path, "print('{\"checks\": []}')")
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
    taken: set[str] = set()
    for text in SPECS:
        path = tmp_path / "spec.yaml"
        path.write_text(text)
        resolved = flat(
            lectern("train", path, "--home", tmp_path / "home", "--dry-run", "--json").json["spec"]
        )
        given = flat(yaml.safe_load(text))
        assert {name: resolved[name] for name in given} == given
        taken |= given.keys()
        for source in given.get("data.sources", []):
            taken |= {f"data.sources.{name}" for name in source}
        absent_sections = {
            "teacher",
            "student.lora",
            "rollout",
            "evaluation.code",
            "evaluation.lm_eval",
        }
        assert resolved.keys() - set(spec_fields()) <= absent_sections
    assert taken == set(spec_fields())


@pytest.mark.parametrize("option", ["optimiser", "teacher.topk", "student.lora.dim"])
def test_what_the_documentation_does_not_name_is_refused(lectern, tmp_path, option: str) -> None:
    """FALSIFY-TRAIN-008"""
    path = tmp_path / "spec.yaml"
    spec = yaml.safe_load(SPECS[0])
    *outer, name = option.split(".")
    section = spec
    for part in outer:
        section = section[part]
    section[name] = 1
    path.write_text(yaml.safe_dump(spec))
    ended = lectern("train", path, "--home", tmp_path / "home", "--dry-run")
    assert ended.code == 2
    assert f"error: {option}: unknown field" in ended.err
