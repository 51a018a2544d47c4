"""What can be wrong with data."""


class SceneError(ValueError):
    """A scene that cannot be used; the message says what, where and what to do."""


class SceneWarning(UserWarning):
    """Part of a scene was skipped, or is a guess."""


class MeshError(ValueError):
    """A mesh or point cloud that cannot be used; the message says what, where and what to do."""


class MeshWarning(UserWarning):
    """Something in a mesh or point cloud was repaired, left out or guessed."""
