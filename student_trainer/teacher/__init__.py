"""The teacher as the loop sees it: remote or local, asked ahead, its replies checked."""
