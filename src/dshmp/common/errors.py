"""The one error that is meant for people."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do, in one line. The command line
    prints it to stderr without a traceback and exits with code 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """A message, printable; of a long one the end is kept, too: it says what to do."""
    text = printable(text)
    return text if len(text) < 800 else f"{text[:600]} ... {text[-150:]}"


def printable(text: str) -> str:
    """The text as a terminal may show it, whatever names a damaged file gave: no line breaks, no control codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
