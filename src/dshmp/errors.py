"""The one error that is meant for people."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do, in one line. The command line
    prints it to stderr without a traceback and exits with code 2."""


def printable(text: str) -> str:
    """The text as a terminal may show it, whatever names a damaged file gave: no line breaks, no control codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
