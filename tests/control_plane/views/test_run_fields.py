"""Fields of a run's view that come only from its spec."""

from control_plane.views.run_fields import run_view


def test_a_student_is_shown_with_its_kept_layers_and_adapters(bench):
    made = {"init": "tiny", "keep_every_nth_layer": 2, "lora": {"rank": 8}}
    shown = [
        run_view(bench.create(student=student), 0.0)
        for student in (made, {"init": "tiny"}, {"config": "tiny"})
    ]
    assert [(run.student, run.keep_every_nth_layer, run.lora_rank) for run in shown] == [
        ("tiny", 2, 8),
        ("tiny", None, None),
        ("tiny", None, None),
    ]
