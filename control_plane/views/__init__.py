"""The model of every response but those about sweeps, and how a run becomes one."""
