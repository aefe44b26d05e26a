"""The table of sweeps, and which runs each of them made."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("goal", sa.Text, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("num_runs", sa.Integer, nullable=False),
        sa.Column("key", sa.Text, unique=True),
        sa.Column("request_sha256", sa.Text, nullable=False),
    )
    op.create_table(
        "sweep_runs",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("sweep_id", sa.Text, nullable=False),
    )
    op.create_index("ix_sweep_runs_sweep_id", "sweep_runs", ["sweep_id"])
