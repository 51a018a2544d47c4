"""What needs no field: files, pictures, metrics, devices, threads."""
