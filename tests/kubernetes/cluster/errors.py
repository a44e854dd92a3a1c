"""What goes wrong with the test cluster, in words that say what to do."""


class ClusterError(Exception):
    """The test cluster cannot be had, or a part of it ended. The message has the end of its log."""


class MissingError(ClusterError):
    """The machine lacks something. The message says what to install."""
