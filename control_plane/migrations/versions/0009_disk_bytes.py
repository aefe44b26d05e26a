"""runs.disk_bytes: what a run's folder takes on disk."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("disk_bytes", sa.Integer))
