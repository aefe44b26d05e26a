"""The stages around training: what is asked of each, and the folder of one execution."""
