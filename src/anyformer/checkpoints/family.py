"""Families of public checkpoints: one file each, found by the `model_type` of config.json.

A family maps tensor names and config fields between the public format and a recipe, in both directions.
"""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..errors import InputError, suggest
from ..parsing import to_json
from ..recipe import Recipe
from ..recipe_loading import recipe_name
from .config_fields import ConfigFields, FieldTable, Settings, require_model, require_settings, write_table
from .tensor_map import ConfigDict, TensorMap, WeightSource

FAMILIES = {
    "gpt2": "gpt2.GPT2",
    "llama": "llama.Llama",
    "qwen3": "qwen.Qwen3",
    "mistral": "mistral.Mistral",
    "qwen2": "qwen.Qwen2",
    "smollm3": "smollm3.SmolLM3",
    "phi3": "phi3.Phi3",
    "olmo2": "olmo2.OLMo2",
    "gemma2": "gemma.Gemma2",
    "gemma3_text": "gemma.Gemma3",
    "bert": "bert.BERT",
    "distilbert": "distilbert.DistilBERT",
    "roberta": "roberta.RoBERTa",
    "xlm-roberta": "roberta.XLMRoBERTa",
    "camembert": "roberta.CamemBERT",
    "mpnet": "mpnet.MPNet",
    "modernbert": "modernbert.ModernBERT",
    "t5": "t5.T5",
    "bart": "bart.BART",
    "marian": "bart.Marian",
    "vit": "vit.ViT",
    "deit": "deit.DeiT",
    "clip": "clip.CLIP",
    "siglip": "siglip.SigLIP",
    "whisper": "whisper.Whisper",
    "decision_transformer": "decision_transformer.DecisionTransformer",
}
"""`model_type` in config.json -> module and class."""
PLAIN: Settings = {
    "rope_scaling": (None,),
    "rotary_cycle": ([],),
    "embedding_scale": (1.0,),
    "softcap": (None,),
    "qk_norm_joint": (False,),
    "logit_softcap": (None,),
    "first_norm": (True,),
}
"""Settings of a family that does not name them among its `own`."""


class Family:
    """Base class of a family.

    Attributes:
        model_type: name in config.json.
        recipes: recipes that have models of this family; a checkpoint is imported as the first.
        architecture: class name of the model in transformers.
        stacks: name of each `TransformerConfig` in the recipe's config -> its field table and its settings.
        fields: field table of the recipe's config.
        settings: settings of the recipe's config.
        own: names of PLAIN that the family reads, writes and checks by itself.
        embedding: the tensor that has a row for each token; None: the family has no vocabulary.
    """

    model_type: ClassVar[str]
    recipes: ClassVar[tuple[str, ...]]
    architecture: ClassVar[str]
    stacks: ClassVar[Mapping[str, tuple[FieldTable, Settings]]]
    fields: ClassVar[FieldTable]
    settings: ClassVar[Settings]
    embedding: ClassVar[str | None]
    own: ClassVar[tuple[str, ...]] = ()

    def normalize_name(self, name: str) -> str | None:
        """Return one name for all spellings of a tensor in public files; None for a tensor to ignore."""
        return name

    def wrap_weights(self, weights: WeightSource) -> WeightSource:
        """Adapt the file's tensors where the table cannot: two public tensors that are one local tensor."""
        return weights

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        """Return the recipe's config for a public config. Raises InputError for an unsupported value."""
        values: ConfigDict = {}
        for stack, (fields, settings) in self.stacks.items():
            values[stack] = c.read_table(fields, max_layers=len(weights.shapes)) | take_first(settings)
        return values | c.read_table(self.fields) | take_first(self.settings)

    def check_config(self, values: ConfigDict) -> None:
        """Raise InputError naming a setting of the recipe's config that the family cannot express."""
        plain = {name: valid for name, valid in PLAIN.items() if name not in self.own}
        for stack, (fields, settings) in self.stacks.items():
            own = {name: plain[name] for name in plain if name in values[stack]}
            require_model(values[stack], fields, {**own, **settings}, "" if stack == "model" else f"{stack}.")
        require_settings(values, {**{name: plain[name] for name in plain if name in values}, **self.settings})

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        """Return the public config, but for `model_type`, for a recipe's config that `check_config` accepts."""
        config: ConfigDict = {}
        for stack, (fields, _) in self.stacks.items():
            config = write_table(values[stack], fields) | config
        vocab = {} if self.embedding is None else {"padded_vocab": len(tensors[self.embedding])}
        return config | write_table(values | vocab, self.fields)

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        """Return the name table for a recipe's config and the public config."""
        raise NotImplementedError

    def add_fixed_tensors(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the model's tensors, with those that it computes and that a public file stores."""
        return tensors

    def make_unused_tensors(self, config: ConfigDict) -> dict[str, Tensor]:
        """Return public tensors that transformers requires and that change no output."""
        return {}

    def make_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, ConfigDict]:
        """Return further JSON files of the public folder; config.json: fields that depend on the model's files."""
        return {}


def take_first(settings: Settings) -> ConfigDict:
    return {name: supported[0] for name, supported in settings.items()}


def load_family(model_type: Any, where: str) -> Family:
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{where}: model_type {model_type!r} is not supported; {suggest(str(model_type), FAMILIES)}")
    module, name = FAMILIES[model_type].split(".")
    return vars(importlib.import_module(f"{__package__}.{module}"))[name]()


def select_family(
    recipe: Recipe,
    values: ConfigDict,
    candidates: Iterable[Family] | None = None,
    kind: str = "Hugging Face family",
) -> Family:
    """Find the family that the model was imported as, if it can express its recipe and config; else the first that can.

    Args:
        candidates: families; None: those of Hugging Face.
        kind: what the candidates are called in errors.

    Raises:
        InputError: says why each family of the recipe cannot, and which presets could be exported.
    """

    def explain(family: Family, values: ConfigDict) -> str | None:
        try:
            family.check_config(values)
        except InputError as error:
            return str(error)
        return None

    own_name = recipe_name(recipe)
    candidates = (load_family(name, "") for name in FAMILIES) if candidates is None else candidates
    families = [family for family in candidates if own_name in family.recipes]
    if not families:
        raise InputError(f"no {kind} has models of the recipe '{own_name}'")
    reasons = {family: explain(family, values) for family in families}
    if able := [family for family, reason in reasons.items() if reason is None]:
        return min(able, key=lambda family: family.model_type != values.get("family"))
    presets = {name: to_json(preset) for name, preset in recipe.PRESETS.items()}
    valid = [name for name, preset in presets.items() if None in (explain(family, preset) for family in families)]
    hint = f"; train with --preset {' or '.join(valid)}" if valid else ""
    listed = "; ".join(f"{family.model_type}: {reason}" for family, reason in reasons.items())
    raise InputError(f"no {kind} can express this model ({listed}){hint}")
