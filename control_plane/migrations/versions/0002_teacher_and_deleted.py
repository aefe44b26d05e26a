"""runs.teacher, which a run was accepted with; the table of deleted runs."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("teacher", sa.JSON))
    op.create_table(
        "deleted_runs",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False, unique=True),
    )
