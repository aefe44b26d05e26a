"""What computes a teacher's answers: the interface of an engine, the engines, a model's facts."""
