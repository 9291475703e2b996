"""The errors a user can cause, each with its exit code; a message names the file, row or key, the cause and the fix.

Exit codes: 0 done, 2 usage or configuration, 3 data, 4 checkpoint or model directory, or a full disk, 5 non-finite
loss, 130 interrupted (SIGINT), 143 terminated (SIGTERM). Anything else is a defect and exits with 1.
"""


class UserError(Exception):
    """Printed as one message, without a traceback unless --debug is given."""

    exit_code = 2


class ConfigError(UserError):
    """A key, value or flag that cannot be used."""


class DataError(UserError):
    """A file, row or column that cannot be read or does not hold what is needed."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint, model or tokenizer directory that is missing, damaged or does not fit."""

    exit_code = 4


class NonFiniteError(UserError):
    """Loss or gradient became NaN or infinite and stayed so."""

    exit_code = 5
