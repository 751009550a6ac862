"""A `ModelSpec` becomes a `TransparentLlm`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from llm_tt.config import ModelSpec
from llm_tt.errors import ModelError
from llm_tt.progress import Progress, silent

if TYPE_CHECKING:
    from llm_tt.models.transparent_llm import TransparentLlm


def load_model(
    model: str | ModelSpec,
    *,
    adapter: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = silent,
) -> TransparentLlm:
    """Load a model and prove that it can be decomposed exactly.

    Args:
        model: "demo", a folder, a hub name, or a specification from the configuration.
        adapter: folder or hub name of a PEFT adapter to merge into it.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", "balanced" (over all CUDA devices), "offload" (what these have no room for stays in
            main memory).
        dtype: "auto", "float32", "bfloat16", "float16".

    Raises:
        ModelError: it cannot be found, loaded or decomposed; the text says why and what to do.
        OutOfMemoryError: it does not fit.
    """
    from llm_tt.models import identities

    llm = load_unchecked(model, adapter=adapter, device=device, dtype=dtype, progress=progress)
    progress(f"Checking that the parts of {llm.info.name} add up", 0.95)
    identities.require(llm)
    return llm


def load_unchecked(
    model: str | ModelSpec,
    *,
    adapter: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = silent,
    before_weights: Callable[[], None] = lambda: None,
) -> TransparentLlm:
    """As `load_model`, for callers that check the identities themselves (`llm_tt.models.identities`).

    `before_weights` is called when everything but the weights has been read and found in order: the moment to make room for them.
    """
    if isinstance(model, str):
        model = ModelSpec.named(model)
    if not (model.path or model.name).strip():
        raise ModelError('No model is named. Give a folder, a hub name, or "demo".')
    spec = model.changed(adapter=adapter, device=None if device == "auto" else device, dtype=None if dtype == "auto" else dtype)

    progress("Importing the model libraries", 0.0)
    if spec.backend is not None:
        from llm_tt.models.own import load_own

        return load_own(spec)
    from llm_tt.models.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(spec, progress, before_weights)
    progress(f"Preparing {spec.name}", 0.85)
    from llm_tt.models.bridge import BridgeLlm

    return BridgeLlm(spec.name, **{field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)})
