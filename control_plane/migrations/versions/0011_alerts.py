"""The tables alerts and plane_conditions; runs.overdue_since."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("overdue_since", sa.Float))
    op.create_table(
        "alerts",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False, unique=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("name", sa.Text),
        sa.Column("state", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("step", sa.Integer),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_try_at", sa.Float),
        sa.Column("delivered_at", sa.Float),
        sa.Column("last_error", sa.Text),
        sa.Column("folded_into", sa.Integer),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "plane_conditions",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("since", sa.Float, nullable=False),
    )
