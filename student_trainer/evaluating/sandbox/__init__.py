"""Runs programs that a model wrote: isolated from this machine, limited, and judged."""
