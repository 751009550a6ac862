"""Architectures that TransformerLens names and that `families` makes no checkpoint of, and why."""

from __future__ import annotations

_REMOTE = "Its code is not part of Transformers: it needs `trust_remote_code` and the code of its repository."
_REMOTE_DIFFUSION = "A diffusion model that sees tokens in both directions; its code is not part of Transformers."
_INTERNAL = "A format of TransformerLens or of a teaching repository, not a class of Transformers."

#: Language models.
NOT_BUILT: dict[str, str] = {
    "BaichuanForCausalLM": _REMOTE,
    "BaiChuanForCausalLM": _REMOTE,
    "BD3LM": _REMOTE_DIFFUSION,
    "DreamModel": _REMOTE_DIFFUSION,
    "ExaoneForCausalLM": f"{_REMOTE} Its successor exaone4 is tried above.",
    "GiddForDiffusionLM": _REMOTE_DIFFUSION,
    "GPT2LMHeadCustomModel": _REMOTE,
    "HyenaDNAForCausalLM": f"{_REMOTE} It has long convolutions instead of attention.",
    "InternLM2ForCausalLM": f"{_REMOTE} InternLM 3 has the blocks of llama.",
    "LLaDA2MoeModelLM": _REMOTE_DIFFUSION,
    "LLaDAModelLM": _REMOTE_DIFFUSION,
    "MinGPTForCausalLM": _INTERNAL,
    "NanoGPTForCausalLM": _INTERNAL,
    "NeelSoluOldForCausalLM": _INTERNAL,
    "OpenELMForCausalLM": _REMOTE,
    "OuroForCausalLM": f"{_REMOTE} It runs its layers several times.",
    "QwenForCausalLM": f"{_REMOTE} This is the first generation of Qwen; its successors qwen2 and qwen3 are tried above.",
    "RavenForCausalLM": f"{_REMOTE} It runs its layers several times.",
    "RWKV7ForCausalLM": f"{_REMOTE} It is recurrent, without attention.",
    "TransformerLensNative": _INTERNAL,
    "TransformerLensPretrain": _INTERNAL,
}

#: Other names for what `families` has.
ALIASES: dict[str, str] = {
    "BloomModel": "bloom",
    "Gemma1ForCausalLM": "gemma",
    "JetMoEForCausalLM": "jetmoe",
    "MPTForCausalLM": "mpt",
    "NeoForCausalLM": "gpt_neo",
    "NeoXForCausalLM": "gpt_neox",
    "PhiMoEForCausalLM": "phimoe",
}

#: How the names of architectures end or begin that are no decoders of text alone.
NOT_TEXT_DECODERS = (
    "ForConditionalGeneration",
    "ForMaskedLM",
    "ForAudioClassification",
    "ForImageClassification",
    "ForCTC",
    "ForPreTraining",
    "BertLMHeadModel",
    "DeiTModel",
    "HubertModel",
    "MarianMTModel",
    "T5WithLMHeadModel",
    "ViTModel",
    "Wav2Vec2Model",
)
