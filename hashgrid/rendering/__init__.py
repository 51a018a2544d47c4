"""From fields to pictures and meshes."""
