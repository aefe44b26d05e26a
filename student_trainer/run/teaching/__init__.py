"""The teachers of a run: connecting them, and a step of several sources with their own teachers."""
