"""Turns text into ids: the tokenizer, and pieces that several processes tokenise."""
