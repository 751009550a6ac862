"""A backend of the user's own: a class that the configuration names, which implements `TransparentLlm`."""

from __future__ import annotations

import importlib
import inspect

from llm_tt.config import ModelSpec
from llm_tt.errors import LlmTtError, ModelError
from llm_tt.models.transparent_llm import TransparentLlm


def load_own(spec: ModelSpec) -> TransparentLlm:
    """Import and construct the class of `spec.backend` ("package.module:Class") with the specification itself.

    Raises:
        ModelError: it cannot be imported, cannot be constructed, or is no `TransparentLlm`.
    """
    assert spec.backend is not None
    module_name, _, class_name = spec.backend.partition(":")
    what = f'The backend "{spec.backend}" of {spec.name}'
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"{what} cannot be imported: {_reason(error)}. Install its package, or start llm-tt with its folder in PYTHONPATH."
        ) from error
    made = getattr(module, class_name, None)
    if made is None:
        raise ModelError(f'{what} does not exist: {module_name} has no "{class_name}". Check the spelling.')
    if not (inspect.isclass(made) and issubclass(made, TransparentLlm)):
        raise ModelError(f"{what} is no subclass of llm_tt.TransparentLlm. See docs/own-backend.md.")
    if inspect.isabstract(made):
        raise ModelError(f"{what} does not implement {', '.join(sorted(made.__abstractmethods__))}. See docs/own-backend.md.")
    try:
        return made(spec)  # type: ignore[call-arg]
    except LlmTtError:
        raise
    except Exception as error:
        raise ModelError(
            f"{what} cannot be constructed: {_reason(error)}. It is called with the ModelSpec; its own settings are in spec.options."
        ) from error


def _reason(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}".rstrip(": .")
