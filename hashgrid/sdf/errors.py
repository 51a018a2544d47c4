"""What is said about meshes and points that cannot be used, or not as they are."""


class MeshError(ValueError):
    """A mesh that cannot be used, with the reason."""


class MeshWarning(UserWarning):
    """A mesh that can be used, but not as it is."""
