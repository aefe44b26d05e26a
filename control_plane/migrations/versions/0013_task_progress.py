"""tasks.restart_progress: how far a task was when it was last interrupted."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("restart_progress", sa.JSON))
