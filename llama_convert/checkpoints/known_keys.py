"""Known keys of ``params.json`` and ``config.json``.

A key is used, is harmless because it does not change what the model computes, or enables a feature that dense
text Llamas do not have.  Files that enable such a feature are refused.  All other keys cause a warning.

Sources: llama-models ``models/llama3/args.py`` and ``models/llama4/args.py``; mistral-inference ``args.py``;
executorch ``examples/models/llama/model_args.py``; lingua ``base_transformer.py``; llama2.c ``model.py``;
transformers 4.45 and 5 ``configuration_utils.py`` and ``models/llama/configuration_llama.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from llama_convert.checkpoints.json_object import JsonObject
from llama_convert.errors import InputError
from llama_convert.formats.strict_json import shown
from llama_convert.text import listed, quoted


@dataclass(frozen=True)
class Feature:
    """An unsupported feature that changes what a model computes."""

    name: str
    neutral: tuple[Any, ...]
    """Values besides null that disable it; for a list, every element must be one of them."""
    switch: str | None
    """Another key; if it is false, the feature is disabled."""

    def is_off(self, value: Any, content: Mapping[str, Any]) -> bool:
        """Whether a value disables the feature.

        Args:
            value: the value of the key.
            content: all keys of the file.
        """
        if self.switch is not None and content.get(self.switch) is False:
            return True
        if isinstance(value, list):
            return all(self.is_off(element, content) for element in value)
        return value is None or value in self.neutral


def _features(
    name: str, *keys: str, neutral: tuple[Any, ...] = (False,), switch: str | None = None
) -> dict[str, Feature]:
    return dict.fromkeys(_keys(*keys), Feature(name, neutral, switch))


def _keys(*lines: str) -> tuple[str, ...]:
    return tuple(key for line in lines for key in line.split())


FEATURES: dict[str, Feature] = {
    # Attention.
    **_features(
        "sliding-window attention, as in Mistral",
        "sliding_window _sliding_window sliding_window_pattern",
        neutral=(False, -1),
        switch="use_sliding_window",
    ),
    **_features("chunked attention, as in Llama 4", "attention_chunk_size"),
    **_features("other kinds of attention layers", "layer_types", neutral=("full_attention",)),
    **_features("normalized queries and keys", "qk_norm use_qk_norm qk_layernorm use_qk_layernorm"),
    **_features(
        "biases",
        "attention_bias attn_bias qkv_bias attention_qkv_bias use_qkv_bias attention_out_bias",
        "mlp_bias ffn_bias lm_head_bias use_bias use_biases bias",
    ),
    **_features(
        "capped logits, as in Gemma 2",
        "attn_logit_softcapping final_logit_softcapping attn_softcap final_softcap",
        "attn_logit_softcap softcap logit_softcap logits_soft_cap",
    ),
    **_features(
        "another scale of attention",
        "attention_multiplier query_pre_attn_scalar attn_scale",
        neutral=(),
    ),
    **_features("attention temperature, as in Llama 4", "attn_temperature_tuning llama_4_scaling"),
    **_features("cross-attention", "add_cross_attention is_encoder_decoder"),
    **_features("bidirectional attention", "use_bidirectional_attention bidirectional"),
    **_features("bidirectional attention", "causal is_causal", neutral=(True,)),
    **_features(
        "latent attention, as in DeepSeek",
        "q_lora_rank kv_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim",
    ),
    # Positions.
    **_features("ALiBi positions", "alibi use_alibi"),
    **_features("YaRN positions", "yarn"),
    **_features(
        "RoPE on a part of each head",
        "partial_rotary_factor rotary_pct rotary_percent rope_pct",
        neutral=(1,),
    ),
    **_features("layers without RoPE", "nope_layer_interval no_rope_layer_interval"),
    **_features("layers without RoPE", "no_rope_layers", neutral=(1,)),  # one number a layer: 1 has RoPE
    # Embedding, residual stream, logits.
    **_features(
        "multipliers, as in Granite",
        "embedding_multiplier embedding_scale_factor scale_emb residual_multiplier residual_scale",
        "scale_depth logits_scaling logit_scale logits_scale lm_head_multiplier",
        neutral=(1,),
    ),
    **_features(
        "attention and feed-forward in parallel",
        "parallel_attn parallel_residual use_parallel_residual",
    ),
    # Blocks.
    **_features(
        "another activation function",
        "hidden_act hidden_activation act_fn activation_function",
        neutral=("silu", "swish"),
    ),
    **_features(
        "another normalization",
        "norm_type layernorm_type",
        neutral=("rmsnorm", "rms_norm", "RMSNorm"),
    ),
    **_features("a mixture of experts, as in Llama 4 and Mixtral", "moe moe_args"),
    **_features(
        "a mixture of experts, as in Llama 4 and Mixtral",
        "num_experts num_local_experts n_routed_experts n_shared_experts num_experts_per_tok",
        "moe_intermediate_size",
        neutral=(0, 1),
        switch="moe",
    ),
    **_features("the feed-forward width of Llama 4", "ffn_exp"),
    **_features(
        "a vision model, as in Llama 3.2 Vision",
        "vision_chunk_size vision_num_cross_attention_layers vision_args vision_model vision_encoder",
        "vision_config vision_tower mm_vision_tower multimodal",
        neutral=(False, -1),
    ),
    **_features("an audio model", "audio_config audio_encoder audio_tower"),
    # Other kinds of weights.
    **_features(
        "quantized weights",
        "quantization quantization_args quantization_config quant_config quant_method",
        "compression_config",
    ),
    **_features("LoRA adapters next to the weights", "lora lora_args lora_rank"),
}
"""By key, for both files: tools copy keys from one to the other."""

PARAMS_FEATURES = FEATURES | {
    **_features("another architecture", "model_type architecture", neutral=("transformer", "llama")),
    **_features("Q/K rows permuted as in Hugging Face format", "use_hf_rope"),
    **_features("RoPE scaling as in Hugging Face format", "rope_scaling"),
    **_features("RoPE scaling with other factors than Llama 3.1", "rope_low_freq_factor", neutral=(1,)),
    **_features("RoPE scaling with other factors than Llama 3.1", "rope_high_freq_factor", neutral=(4,)),
    **_features("a part of a model", "apply_embedding apply_output", neutral=(True,)),
}
PARAMS_USED = _keys(
    "dim n_layers n_heads n_kv_heads head_dim vocab_size multiple_of ffn_dim_multiplier hidden_dim",
    "norm_eps rope_theta rope_freq_base use_scaled_rope rope_scaling_factor rope_scale_factor",
)
PARAMS_HARMLESS = _keys(
    "max_batch_size max_seq_len max_seqlen max_seq_length max_context_len max_position_embeddings",
    "model_parallel_size vision_max_num_chunks use_sliding_window max_window_layers",
    # Determined by the tensors.
    "tied_embeddings tie_word_embeddings weight_tying torch_dtype dtype",
    # Training.
    "dropout attention_dropout initializer_range depth_init init_base_std init_std_factor seed",
    # Special tokens.
    "bos_id eos_id pad_id bos_idx eos_idx bos_count eos_count bos_token_id eos_token_id pad_token_id",
    # Inference.
    "use_cache use_kv_cache use_sdpa use_sdpa_with_kv_cache_op generate_full_logits",
    "enable_dynamic_shape use_flex_attn",
    "name model_name version transformers_version",
)

CONFIG_FEATURES = FEATURES | {
    **_features("another architecture", "model_type", neutral=("llama",)),
    **_features("another model class", "architectures", neutral=("LlamaForCausalLM", "LLaMAForCausalLM")),
}
CONFIG_USED = _keys(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim",
    "vocab_size rms_norm_eps rope_theta rope_scaling rope_parameters max_position_embeddings",
    "tie_word_embeddings torch_dtype dtype",
)
CONFIG_HARMLESS = _keys(
    # Special tokens.
    "bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id prefix",
    "tokenizer_class",
    # Training.
    "attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout classifier_dropout",
    "attention_probs_dropout_prob hidden_dropout_prob initializer_range neftune_noise_alpha",
    "gradient_checkpointing use_gradient_checkpointing use_recompute finetuning_task",
    "task_specific_params problem_type id2label label2id num_labels",
    # Inference; `pretraining_tp` changes only the order of sums.
    "use_cache torchscript return_dict output_attentions output_hidden_states output_scores",
    "use_bfloat16 pretraining_tp chunk_size_feed_forward is_decoder cross_attention_hidden_size",
    "tie_encoder_decoder tf_legacy_loss pruned_heads keys_to_ignore_at_inference",
    "attn_implementation use_flash_attention use_flash_attn use_flash_attention_2 flash_attn use_sdpa",
    "use_fused_rope use_fused_rms_norm use_sliding_window max_window_layers",
    # Generation, which transformers 4 also writes here.
    "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups",
    "diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty",
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences",
    "return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values",
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens",
    # Context length under other names.
    "max_sequence_length max_seq_len max_seq_length seq_length model_max_length",
    "tokenizer_model_max_length tokenizer_padding_side",
    # Other tools.
    "transformers_version transformers_weights transformers.js_config paddlenlp_version",
    "unsloth_version unsloth_fixed unsloth_optimized model_name model_name_or_path model_id name license",
)


def check_keys(
    settings: JsonObject, features: Mapping[str, Feature], used: Collection[str], harmless: Collection[str]
) -> tuple[InputError, ...]:
    """Check the keys of a file; returns a warning if some are unknown.

    Args:
        settings: the file.
        features: keys of features that must be disabled.
        used: keys that are read.
        harmless: keys that do not change what the model computes.

    Raises:
        InputError: a feature is enabled.
    """
    unknown = []
    for key, value in settings.content.items():
        if key in features:
            if not features[key].is_off(value, settings.content):
                raise _unsupported(settings, key, features[key])
        elif value is not None and key not in used and key not in harmless and not key.startswith("_"):
            unknown.append(f"{quoted(key)} ({shown(value)})")
    if not unknown:
        return ()
    message = f"Ignored unknown key{'s' * (len(unknown) > 1)}: {listed(unknown)}."
    hint = "Check that the model computes the same as Llama without them."
    return (InputError(f"{settings.kind}_KEYS", message, file=settings.file, hint=hint),)


def _unsupported(settings: JsonObject, key: str, feature: Feature) -> InputError:
    value = shown(settings.content[key])
    message = f'"{key}" is {value} ({feature.name}). Only dense text Llama models are supported.'
    return InputError("UNSUPPORTED_MODEL", message, file=settings.file)
