"""Exports of a run's student for other programs: a model folder, or a GGUF file for llama.cpp."""
