"""What fields are fitted to: scenes, images, meshes, points."""
