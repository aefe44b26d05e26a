"""The output head, and what is made of logits: blocks of rows, top-k, draws, masks."""
