"""Signed distance fields: from a mesh or points to a neural field and back to a mesh."""
