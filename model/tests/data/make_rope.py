"""Makes rope.json: what transformers makes of rotary positions, for the unit tests of the decoders.

    python make_rope.py

Made with torch 2.15.0 and transformers 5.24.0; the tests need none of them.
"""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

# As published: Llama 3.2 1B and 3.1 8B, Qwen 2.5, TinyLlama, and an older one that was stretched.
CASES = [
    (64, {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    (128, {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    (128, {"rope_type": "default", "rope_theta": 1000000.0}),
    (64, {"rope_type": "default", "rope_theta": 10000.0}),
    (128, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
]
POSITIONS = [0, 1, 63, 1023, 1024, 8191, 100_000]


def case(width, parameters):
    config = LlamaConfig(
        vocab_size=320, hidden_size=2 * width, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=2, head_dim=width, max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    rope = LlamaRotaryEmbedding(config)
    cos, sin = rope(torch.zeros(1), torch.tensor([POSITIONS]))
    half = width // 2
    return {
        "config": {"head_dim": width, "rope_parameters": parameters},
        "frequencies": rope.inv_freq.tolist(),
        "positions": POSITIONS,
        "cos": cos[0, :, :half].tolist(),
        "sin": sin[0, :, :half].tolist(),
    }


lines = ",\n".join(json.dumps(case(*each)) for each in CASES)
(Path(__file__).parent / "rope.json").write_text(f"[{lines}]\n", encoding="utf-8")
