"""Reads run folders and roots, and streams what changes in them."""
