"""How good a student is: validation, the best so far, samples to read."""
