"""What a command ends with when it does not end well."""

import click

ANSWER_IS_NO = 1
USER_ERROR = 4
INTERRUPTED = 130


class Failure(click.ClickException):
    """An error as the user sees it: one line on stderr, and an exit code."""

    def __init__(self, message: str, exit_code: int = USER_ERROR) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


class Interrupted(Failure):
    """Ctrl-C, with a line that tells how to go on."""

    def __init__(self, message: str) -> None:
        super().__init__(message, INTERRUPTED)
