"""The HTTP face, for other people's trainers: the scoring routes of vLLM and SGLang."""
