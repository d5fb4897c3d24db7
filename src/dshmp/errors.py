"""The one error that is meant for people."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do, in one line.

    The command line prints it to stderr without a traceback and exits with code 2.
    """
