"""What can go wrong for a user, as exceptions whose text is the sentence to show. Programming errors keep Python's own exceptions."""

from __future__ import annotations


class LlmTtError(Exception):
    """A problem the user can do something about: `str(error)` names the offending value and the way out."""


class ConfigError(LlmTtError):
    """A configuration file is missing, unreadable or holds a wrong value."""


class ModelError(LlmTtError):
    """A model cannot be found, loaded or decomposed."""


class PromptError(LlmTtError):
    """A prompt cannot be traced: empty, too long, or with ids outside the vocabulary."""


class RequestError(LlmTtError):
    """A question about a trace names a layer, position, token or node that it does not have."""


class OutOfMemoryError(LlmTtError):
    """A run would not fit, or did not fit, into the memory of its device."""
