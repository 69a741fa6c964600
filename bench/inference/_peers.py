"""Language models of other libraries, from a folder in Hugging Face's form; they decode greedily on a CPU."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PEERS = ("transformers float32", "transformers bfloat16", "CTranslate2 float32", "CTranslate2 int8")
PEERS += ("onnxruntime float32",)
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
    "llama-1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
}
Rows = list[list[int]]
Generate = Callable[[Rows, int], Rows]
Times = tuple[float, float]
"""CPU seconds of all threads, wall seconds."""


def load_peer(name: str, folder: Path) -> Generate:
    """Load a peer by its name in PEERS; what it needs is written beside the model, once."""
    library, weights = name.split()
    load = {"transformers": load_transformers, "CTranslate2": load_ctranslate2, "onnxruntime": load_onnxruntime}
    return load[library](folder, weights)


def load_transformers(folder: Path, weights: str) -> Generate:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, weights)).eval()

    def generate_rows(prompts: Rows, tokens: int) -> Rows:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            arguments = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None}
            return model.generate(ids, max_new_tokens=tokens, pad_token_id=0, **arguments)[:, ids.shape[1] :].tolist()

    return generate_rows


def load_ctranslate2(folder: Path, weights: str) -> Generate:
    import ctranslate2
    import transformers

    out = folder / f"ctranslate2-{weights}"
    if not out.exists():
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(out), quantization=weights)
    threads, tokenizer = torch.get_num_threads(), transformers.AutoTokenizer.from_pretrained(folder)
    model = ctranslate2.Generator(str(out), device="cpu", compute_type=weights, intra_threads=threads)

    def generate_rows(prompts: Rows, tokens: int) -> Rows:
        words = [tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts]
        length = {"max_length": tokens, "min_length": tokens, "include_prompt_in_result": False, "end_token": []}
        return [output.sequences_ids[0] for output in model.generate_batch(words, max_batch_size=len(words), **length)]

    return generate_rows


def load_onnxruntime(folder: Path, weights: str) -> Generate:
    """Our own export with keys and values; there is no other in float32 for any model."""
    import numpy as np
    import onnxruntime

    from anyformer import api

    out = folder / "onnx"
    if not out.exists():
        api.export_checkpoint(folder, "onnx", out, cached=True)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(out / "model.onnx", settings, providers=["CPUExecutionProvider"])
    empty = {x.name: x.shape for x in session.get_inputs() if x.name != "ids"}

    def generate_rows(prompts: Rows, tokens: int) -> Rows:
        past = {name: np.zeros((len(prompts), shape[1], 0, shape[3]), np.float32) for name, shape in empty.items()}
        ids, columns = np.array(prompts), []
        for _ in range(tokens):
            logits, *present = session.run(None, {"ids": ids, **past})
            past = dict(zip(past, present, strict=True))
            ids = logits[:, -1].argmax(-1)[:, None]
            columns.append(ids)
        return np.concatenate(columns, 1).tolist()

    return generate_rows


def write_random_model(folder: Path, shape: str, tokenizer: Path) -> None:
    """Write random weights of a shape, larger than at initialization so that the largest logit is clear, with the
    vocabulary of another folder."""
    import transformers

    torch.manual_seed(0)
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    ends = {"vocab_size": len(words), "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**SHAPES[shape], **ends))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def now() -> Times:
    return time.process_time(), time.perf_counter()


def subtract(end: Times, start: Times) -> Times:
    return end[0] - start[0], end[1] - start[1]


def time_apart(generate_rows: Generate, prompts: Rows, tokens: int) -> tuple[Rows, Times, Times]:
    """Return the rows, the times of reading (and one token), and those of writing the others: the prompts are read
    twice, and the first time is taken off."""
    start = now()
    generate_rows(prompts, 1)
    middle = now()
    rows = generate_rows(prompts, tokens)
    reading = subtract(middle, start)
    return rows, reading, subtract(subtract(now(), middle), reading)
