"""Series of metrics for charts: buckets of steps, from an index of metrics.jsonl."""
