"""The errors that a user can cause, each with its exit code. A message names the file, row or key, the cause, the fix.

Exit codes: 0 success, 2 usage or configuration, 3 data, 4 checkpoint or model directory, or a full disk, 5 non-finite
loss, 130 interrupted (SIGINT), 143 terminated (SIGTERM). Any other exception is a bug and exits with 1.
"""


class UserError(Exception):
    """Printed as one message, without a traceback unless --debug is given."""

    exit_code = 2


class ConfigError(UserError):
    """A key, value or flag that cannot be used."""


class DataError(UserError):
    """A file, row or column that cannot be read or lacks what is needed."""

    exit_code = 3


class MissingColumnError(DataError):
    """A table does not have `column`.

    advice: what else may be wrong with it. choice: how to name another column, such as data.text=COLUMN.
    """

    def __init__(self, message: str, column: str = "", advice: str = "") -> None:
        super().__init__(message)
        self.column, self.advice, self.choice = column, advice, ""

    def __str__(self) -> str:
        named = f"Name the right one: {self.choice}" if self.choice else ""
        return ". ".join(filter(None, (super().__str__(), named, self.advice)))


class CheckpointError(UserError):
    """A checkpoint, model directory or tokenizer directory that is missing, damaged or does not match."""

    exit_code = 4


class NonFiniteError(UserError):
    """The loss or the gradient became NaN or infinite and stayed that way."""

    exit_code = 5
