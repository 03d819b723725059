"""The error raised by all code that reads data."""

from mda.schema import ConfigError


class DataError(ConfigError):
    """Data that cannot be used; the message names them, what they hold and what is accepted."""


PASSING = ("TransportError", "ConnectionError", "TimeoutError")


def temporary(error: BaseException | None) -> bool:
    """Returns whether an error of the hub's client may pass: 429, 5xx or a lost connection.

    The client's transport, and with it the classes of its errors, has changed twice; their names
    have not.
    """
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return status == 429 or status >= 500
        names = {kind.__name__ for kind in type(error).__mro__}
        if not names.isdisjoint(PASSING) or "Consistency check failed" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
