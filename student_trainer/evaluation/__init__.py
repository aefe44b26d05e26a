"""How good a student is: validation metrics, the best so far, sample texts."""
