"""Text into ids: the tokenizer, and pieces tokenised by several processes."""
