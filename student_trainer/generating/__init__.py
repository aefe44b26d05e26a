"""Text that the student writes: the generator, and the rollouts that it learns from."""
