"""The one exception of this package."""


class ExportError(Exception):
    """A checkpoint or destination that cannot be exported.

    Its text is the one line that the user reads: it names the file, tensor or setting at fault, and where there are
    two numbers, the expected and the found one.
    """
