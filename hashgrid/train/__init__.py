"""Training without knowledge of what is trained."""
