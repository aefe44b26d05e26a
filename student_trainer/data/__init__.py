"""The rows of a run: datasets opened and checked, held out, walked in order."""
