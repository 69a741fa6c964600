"""OLMo 2 (2501.00656): the `olmo2` family, Llama that norms what sublayers add; queries and keys over all heads."""

from . import llama

FIELDS = llama.FIELDS | {"rms_norm_eps": ("norm_eps", 1e-5)}
SETTINGS = llama.SETTINGS | {"norm_place": ("output",), "qk_norm": (True,), "qk_norm_joint": (True,)}


class OLMo2(llama.Llama):
    model_type, architecture = "olmo2", "Olmo2ForCausalLM"
    stacks, biases = {"model": (FIELDS, SETTINGS)}, ("attention",)
    norms = {
        "attn_output_norm": "post_attention_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }
