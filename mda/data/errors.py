"""The error of all that reads data."""

from mda.schema import ConfigError


class DataError(ConfigError):
    """Data that cannot be used: says which, what it holds and what is accepted."""
