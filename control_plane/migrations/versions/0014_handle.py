"""runs.handle and tasks.handle: what works on one, known to its backend; see processes.Handle."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("runs", "tasks"):
        op.add_column(table, sa.Column("handle", sa.Text))
        op.execute(
            f"UPDATE {table} SET handle = 'local:' || pid || "  # noqa: S608
            "CASE WHEN boot_id IS NULL OR start_ticks IS NULL THEN '' "
            "ELSE '/' || start_ticks || '/' || boot_id END WHERE pid IS NOT NULL"
        )
        for name in ("pid", "boot_id", "start_ticks"):
            op.drop_column(table, name)
