"""Compressed photos: files that every machine reads to the same bits. NumPy and an entropy coder are all they need."""
