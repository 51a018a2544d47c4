"""Neural fields: one method, one file."""
