"""The one exception for a user's mistake."""


class InputError(ValueError):
    """A file, config or argument that cannot be used; its text is one sentence for the user.

    The text names the file, line or field, what was found, what was expected and what to do. The
    command line prints it without a traceback and exits with code 2.
    """
