"""The demo's text, its two small models, and the specs of its five runs.

The numbers are fixed so that everyone sees the same results; `--seed` changes the students' initial
weights and row order. The students' learning rate is the best for plain cross entropy on the grid
in benchmarks/trainer/demo_learning_rate.json, so that the baseline is a strong one.
"""

import sysconfig
from pathlib import Path
from typing import Any

from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec

DATASET = "stdlib"
VOCAB_SIZE = 2048
SEQ_LEN = 128
SEQUENCES_PER_STEP = 16
TEACHER_STEPS = 600
STUDENT_STEPS = 200
STUDENT_LEARNING_RATE = 3.5e-3

# Folders of the standard library that hold no library source: tests, and what was installed there.
EXCLUDED = (
    "test/**",
    "**/test/**",
    "**/tests/**",
    "**/idle_test/**",
    "site-packages/**",
    "dist-packages/**",
    "config-*/**",
    "lib-dynload/**",
    "__pycache__/**",
    "**/__pycache__/**",
)


def corpus_folder() -> Path:
    """Returns the running interpreter's standard library: about 12 MB of Python."""
    return Path(sysconfig.get_paths()["stdlib"])


def model_config(
    hidden_size: int, layers: int, heads: int, intermediate_size: int
) -> dict[str, Any]:
    """Returns the config.json of a small model, of a type whose tokenizer.json transformers reads.

    (For `qwen2` it would build another pre-tokenizer.)
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
        "attention_dropout": 0.0,
    }


MODEL_CONFIGS = {
    "teacher-config": model_config(192, 4, 6, 512),  # 2.2 M parameters
    "student-config": model_config(64, 2, 4, 192),  # 0.24 M parameters
}


def teacher_spec(steps: int, threads: int) -> RunSpec:
    """Returns the spec that trains the teacher: cross entropy only, so it needs no teacher."""
    return parse_spec(
        {
            **_common("demo-teacher", seed=0, steps=steps, learning_rate=4e-3),
            "student": {"config": "teacher-config"},
            "objective": {"alpha": 1},
            "device": {"kind": "cpu", "threads": threads},
        }
    )


def student_specs(
    teacher_address: str,
    seed: int,
    steps: int,
    *,
    token_file: str | None = None,
    record_to: str | None = None,
) -> list[RunSpec]:
    """Returns the specs of the three runs with the teacher, which differ in what they learn from.

    With `record_to`, the second keeps what the teacher sends it in a record of that name.
    """
    teacher = {"address": teacher_address, "token_file": token_file}
    choices: dict[str, dict[str, Any]] = {
        "cross-entropy": {"objective": {"alpha": 1}},
        "distilled-hidden": {
            "objective": {"alpha": 0, "temperature": 1},
            "teacher": {**teacher, "representation": "hidden", "record_to": record_to},
        },
        "distilled-top-k": {
            # The labels supply some of what the top 64 leave out.
            "objective": {"alpha": 0.1, "temperature": 1},
            "teacher": {**teacher, "representation": "top_k", "top_k": 64},
        },
    }
    return [_student(name, seed, steps, sections) for name, sections in choices.items()]


def recorded_spec(record: str, seed: int, steps: int) -> RunSpec:
    """Returns the spec of the run that is `distilled-hidden`, from its record."""
    sections = {
        "objective": {"alpha": 0, "temperature": 1},
        "teacher": {"record": record, "representation": "hidden"},
    }
    return _student("distilled-recorded", seed, steps, sections)


def _student(name: str, seed: int, steps: int, sections: dict[str, Any]) -> RunSpec:
    return parse_spec(
        {
            **_common(name, seed=seed, steps=steps, learning_rate=STUDENT_LEARNING_RATE),
            "student": {"config": "student-config"},
            "device": {"kind": "cpu", "threads": 1},
            **sections,
        }
    )


def _common(name: str, *, seed: int, steps: int, learning_rate: float) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "data": {
            "path": DATASET,
            "validation_path": f"{DATASET}-validation",
            "seq_len": SEQ_LEN,
        },
        "optimizer": {"learning_rate": learning_rate},
        "schedule": {"steps": steps, "warmup_steps": steps // 10},
        "batch": {"sequences_per_step": SEQUENCES_PER_STEP},
        "evaluation": {"every_steps": max(1, steps // 8), "max_sequences": 64},
        "checkpoint": {"every_steps": max(1, steps // 4)},
    }
