"""Publishing a student: plan, card, licence, upload to the model hub, and verification."""
