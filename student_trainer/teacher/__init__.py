"""The teacher as the loop sees it: remote or local, with prefetching and checked replies."""
