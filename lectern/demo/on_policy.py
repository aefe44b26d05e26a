"""`lectern demo --on-policy`: one student, taught further on the teacher's texts and on its own.

    run_on_policy_demo()
      1. takes short functions of the standard library             functions.py
      2. trains a small teacher on them once                       teacher.py
      3. distils a student from it with forward KL on the functions
      4. goes on from that student: as before (off-policy), and with reverse KL on what it writes
         itself (on-policy); the same number of steps and rows, and the same learning rate
      5. lets each of the three write texts, and the teacher judge them: runs of one step, which
         changes nothing that is used
      6. shows and writes the figures

Everything goes through the same code as a user's own runs; only the specs are the demo's. The texts
of step 5 continue functions that no run has seen, with the same random numbers for all students.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from lectern import console
from lectern.client import Client
from lectern.demo.command import rested, serving, stay_up
from lectern.demo.functions import (
    FUNCTIONS,
    HELD_OUT,
    HELD_OUT_PROMPTS,
    MAX_TOKENS,
    PROMPTS,
    prepare_functions,
)
from lectern.demo.teacher import trained_teacher, write_configs
from lectern_common.files import write_atomic
from lectern_common.json_lines import read_json_lines
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec

TEACHER_STEPS, STEPS = 200, 40
# The student's distillation before has so many times these.
_FIRST_STEPS = 3
# Of a student's step; a teacher's has half as many.
ROWS = 16
# Prompts whose continuations are judged, and how many each has.
JUDGED_PROMPTS, JUDGED_EACH = 256, 2
_FIRST_RATE, _RATE = 3.5e-3, 1e-3
SUMMARY = "on-policy.json"

Sections = dict[str, Any]


def run_on_policy_demo(
    *, folder: Path, seed: int, exit_when_done: bool, teacher_steps: int, student_steps: int
) -> None:
    """Runs the demo in `folder`; reuses the functions and the teacher of an earlier one there.

    Raises:
        LecternError: a step failed; the message says where to look.
    """
    home = folder.resolve()
    roots = Roots.of_home(home)
    write_configs(roots.models)
    prepare_functions(roots.data)
    teacher = trained_teacher(home, teacher_spec(teacher_steps, threads=os.cpu_count() or 1))
    with serving(teacher, home) as (up, client):
        specs = Specs(up.teacher_address, seed, student_steps)
        students = judged_students(client, specs, roots)
        summary = {"seed": seed, "steps": student_steps, "students": students}
        write_atomic(home / SUMMARY, json.dumps(summary, indent=2).encode() + b"\n")
        show(summary)
        console.note(f"\nsummary: {home / SUMMARY}")
        if not exit_when_done:
            stay_up(up)


def judged_students(client: Client, specs: "Specs", roots: Roots) -> list[Sections]:
    """Trains the three students, has their texts judged, and returns an entry for each."""
    trained = {}
    [run] = rested(client, [specs.first()])
    trained["forward-kl"] = run.id
    begun = _as_model(roots, run.id, "demo-forward-kl")
    for run in rested(client, [specs.off_policy(begun), specs.on_policy(begun)]):
        trained[run.name] = run.id
    console.note("\neach student writes, and the teacher judges ...")
    judged = rested(
        client,
        [
            specs.judged(name, _as_model(roots, run_id, f"demo-{name}"))
            for name, run_id in trained.items()
        ],
    )
    return [
        _entry(name, run_id, RunFolder(roots.runs / by.id))
        for (name, run_id), by in zip(trained.items(), judged, strict=True)
    ]


def _as_model(roots: Roots, run_id: str, name: str) -> str:
    """Copies a run's export to the models; returns its name there."""
    shutil.rmtree(roots.models / name, ignore_errors=True)
    shutil.copytree(roots.runs / run_id / "export", roots.models / name)
    return name


def _entry(name: str, run_id: str, judged: RunFolder) -> Sections:
    line = next(
        line
        for line in read_json_lines(judged.metrics_path)
        if line.get("rollout/rows") is not None
    )
    return {
        "name": name,
        "run": run_id,
        "judged_by": judged.run_id,
        "texts": round(line["rollout/rows"]),
        "reverse_kl": line["rollout/kd"],
        "clean_share": line["rollout/clean_share"],
        "finished_share": line["rollout/finished_share"],
        "mean_length": line["rollout/mean_length"],
    }


def show(summary: Sections) -> None:
    """Prints the students and how the teacher judges what they write."""
    from rich.table import Table

    table = Table(
        title=f"what each student writes, judged by the teacher ({summary['students'][0]['texts']} "
        "texts)"
    )
    table.add_column("student", no_wrap=True)
    for name in ("reverse KL,\nnats/token", "finished, without\nrepetition", "finished", "tokens"):
        table.add_column(name, justify="right")
    for student in summary["students"]:
        table.add_row(
            student["name"],
            f"{student['reverse_kl']:.3f}",
            f"{student['clean_share']:.1%}",
            f"{student['finished_share']:.1%}",
            f"{student['mean_length']:.1f}",
        )
    console.out().print(table)
    console.note(
        f"off-policy and on-policy both made {summary['steps']} more steps than forward-kl. The "
        "page shows the texts of the runs judged-*, each token coloured by its divergence"
    )


def teacher_spec(steps: int, threads: int) -> RunSpec:
    """Returns the spec that trains the teacher: cross entropy only, so it needs no teacher."""
    return parse_spec(
        {
            **_common("functions-teacher", 0, steps, 4e-3),
            "student": {"config": "teacher-config"},
            "objective": {"alpha": 1},
            "batch": {"sequences_per_step": ROWS // 2},
            "device": {"kind": "cpu", "threads": threads},
        }
    )


class Specs:
    """The specs of the students' runs.

    Args:
        teacher: its address.
        seed: of initial weights, row order and texts.
        steps: that the second and the third make after the first.
    """

    def __init__(self, teacher: str, seed: int, steps: int) -> None:
        self._teacher = {"address": teacher, "representation": "hidden"}
        self._seed = seed
        self._steps = steps

    def first(self) -> RunSpec:
        """Returns that of the student from which the others go on."""
        sections = {"objective": _divergence("forward_kl"), "student": {"config": "student-config"}}
        return self._spec("forward-kl", _FIRST_STEPS * self._steps, _FIRST_RATE, sections)

    def off_policy(self, begun: str) -> RunSpec:
        """Returns that of a student that goes on learning from functions of the library."""
        sections = {"objective": _divergence("forward_kl"), "student": {"init": begun}}
        return self._spec("off-policy", self._steps, _RATE, sections)

    def on_policy(self, begun: str) -> RunSpec:
        """Returns that of a student that learns from its own text."""
        sections = {
            "objective": _divergence("reverse_kl"),
            "student": {"init": begun},
            "rollout": _rollout(PROMPTS),
        }
        return self._spec("on-policy", self._steps, _RATE, sections)

    def judged(self, name: str, student: str) -> RunSpec:
        """Returns that of a run whose only step lets a student write, before any update."""
        texts = min(JUDGED_PROMPTS, ROWS * self._steps) * JUDGED_EACH
        sections = {
            "objective": _divergence("reverse_kl"),
            "student": {"init": student},
            "rollout": {**_rollout(HELD_OUT_PROMPTS), "samples_per_prompt": JUDGED_EACH},
            "batch": {"sequences_per_step": texts, "micro_batch_sequences": ROWS},
            "evaluation": {"every_steps": 1, "max_sequences": 1},
        }
        return self._spec(f"judged-{name}", 1, _RATE, sections)

    def _spec(self, name: str, steps: int, rate: float, sections: Sections) -> RunSpec:
        return parse_spec(
            {
                **_common(name, self._seed, steps, rate),
                "teacher": self._teacher,
                "device": {"kind": "cpu", "threads": 1},
                **sections,
            }
        )


def _divergence(name: str) -> Sections:
    return {"alpha": 0, "temperature": 1, "divergence": name}


def _rollout(prompts: str) -> Sections:
    return {"fraction": 1, "prompts": prompts, "max_new_tokens": MAX_TOKENS}


def _common(name: str, seed: int, steps: int, learning_rate: float) -> Sections:
    return {
        "name": name,
        "seed": seed,
        "data": {
            "path": FUNCTIONS,
            "validation_path": HELD_OUT,
            "seq_len": MAX_TOKENS,
            "attention_across_documents": False,
        },
        "optimizer": {"learning_rate": learning_rate},
        "schedule": {"steps": steps, "warmup_steps": steps // 10},
        "batch": {"sequences_per_step": ROWS},
        "evaluation": {"every_steps": max(1, steps // 4), "max_sequences": 32},
        "checkpoint": {"every_steps": max(1, steps // 2)},
    }
