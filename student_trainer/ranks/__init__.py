"""The processes that train one run together: who they are, who watches them, split weights."""
