"""What can be wrong with a scene."""


class SceneError(ValueError):
    """A scene that cannot be used; the message says what, where and what to do."""


class SceneWarning(UserWarning):
    """Part of a scene was skipped, or is a guess."""
