"""The one exception that means: the user's input is wrong, and this sentence says how."""


class UserError(ValueError):
    """A file, key, image or value given by the user cannot be used; the message is one clear sentence.

    The command line prints the message without a traceback and exits with code 2.
    """
