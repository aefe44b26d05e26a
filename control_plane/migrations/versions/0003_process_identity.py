"""runs.boot_id and runs.start_ticks: which process trains a run, without the wall clock."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("boot_id", sa.Text))
    op.add_column("runs", sa.Column("start_ticks", sa.Integer))
