"""Makes the tiny decoders of the Llama family and what transformers makes of them, for decoders.rs.

    python make_decoders.py [NAME...]     writes NAME/ and NAME.json, all of them without a name

Made with torch 2.15.0, transformers 5.24.0 and tokenizers 0.23.3; the tests need none of them.
The weights are rounded to half precision before anything is computed, so the files are small and
the references are those of single precision all the same.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = Path(__file__).parent
SEED = 11
LIMIT = 256
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog does not mind",
    "a motor hums; its bearing is warm, and the pressure falls below 12.5 bar",
    "You are a careful assistant. Answer in one short sentence.",
    "What does a pump do when its valve is closed? It runs hot, and then it stops.",
    "fn main() {\n    let answer = 42;\n    println!(\"{answer}\");\n}\n",
    "Crème brûlée, naïve façade, Ångström, İstanbul, Straße",
    "温度が高い 压力 vibration 振動 🚀",
]
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [END_OF_TEXT, START, END]
TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a careful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CONVERSATIONS = [
    [{"role": "user", "content": "  What does a pump do when its valve is closed?\n"}],
    [
        {"role": "system", "content": "Answer in one short sentence; naïve façade 🚀"},
        {"role": "user", "content": "温度が高い?"},
        {"role": "assistant", "content": "It runs hot."},
        {"role": "user", "content": "and then\n\n  what about <b>bold</b> & 'quotes'?"},
    ],
]
TEXTS = [
    "the quick brown fox",
    "a",
    "Crème brûlée 🚀 温度が高い",
    "the bearing is warm, and the pressure falls; " * 6,
]
# Long enough that the second half attends to more than 64 positions.
NEW_TOKENS = 80


def tokenizer():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=END,
        pad_token=END_OF_TEXT,
        model_max_length=LIMIT,
        clean_up_tokenization_spaces=False,
    )
    # Where older tokenizers have it, and every reader finds it: in tokenizer_config.json.
    wrapped.chat_template = TEMPLATE
    return wrapped


def shape(words, **more):
    sizes = dict(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LIMIT,
        # Wider than usual, so that attention is far from even and a slip shows.
        initializer_range=0.3,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=2,
    )
    return {**sizes, **more}


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def llama(words):
    sizes = shape(words, tie_word_embeddings=True, rope_parameters=LLAMA3, rms_norm_eps=1e-5)
    return LlamaForCausalLM(LlamaConfig(**sizes))


def mistral(words):
    # As in the first Mistral, a window that is shorter than the positions: sequences end with it.
    sizes = shape(words, head_dim=12, sliding_window=192, rms_norm_eps=1e-5)
    return MistralForCausalLM(MistralConfig(**sizes))


def qwen2(words):
    sizes = shape(words, num_key_value_heads=1, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    return Qwen2ForCausalLM(Qwen2Config(**sizes))


def qwen3(words):
    sizes = shape(words, head_dim=16, num_hidden_layers=3, tie_word_embeddings=True)
    return Qwen3ForCausalLM(Qwen3Config(**sizes))


def shaken(model, dtype):
    """Moves what starts at zero or one, or it is not tested; rounds to half precision."""
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 1:
                value.add_(torch.randn_like(value) * 0.2)
            value.copy_(value.to(dtype).float())
    return model.eval()


def continuation(model, ids, n_new):
    """The likeliest token, again and again, read from the whole text each time."""
    ids, gaps = list(ids), []
    start = len(ids)
    with torch.no_grad():
        for _ in range(n_new):
            row = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            first, second = row.topk(2).values.tolist()
            gaps.append(first - second)
            ids.append(int(row.argmax()))
    return ids[start:], min(gaps)


def rounded(row):
    return [float(f"{float(x):.7g}") for x in row]


def dump(name, value):
    lines = ",\n".join(json.dumps(key) + ": " + json.dumps(part) for key, part in value.items())
    (HERE / f"{name}.json").write_text("{" + lines + "}\n", encoding="utf-8")


def make(name, build, dtype, n_new):
    torch.manual_seed(SEED)
    words = tokenizer()
    model = shaken(build(words), dtype)
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    model.generation_config = GenerationConfig(eos_token_id=[2, 0], pad_token_id=0)
    model.save_pretrained(directory)
    words.save_pretrained(directory, save_jinja_files=False)
    path = directory / "model.safetensors"
    weights = {key: value.to(dtype) for key, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})

    prompts = []
    for text in TEXTS:
        ids = words(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        greedy, gap = continuation(model, ids, n_new)
        prompts.append(
            {"text": text, "ids": ids, "logits": rounded(logits), "greedy": greedy, "gap": gap}
        )
        print(f"{name}: {len(ids)} + {n_new} tokens, {len(set(greedy))} of them different, gap {gap:.2g}")
    chats = []
    for messages in CONVERSATIONS:
        text = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = words(text, add_special_tokens=False)["input_ids"]
        chats.append({"messages": messages, "text": text, "ids": ids, "decoded": words.decode(ids, skip_special_tokens=True)})
    dump(name, {"prompts": prompts, "chats": chats})


ALL = {
    "tiny-llama": (llama, torch.float16),
    "tiny-mistral": (mistral, torch.bfloat16),
    "tiny-qwen2": (qwen2, torch.float16),
    "tiny-qwen3": (qwen3, torch.float16),
}


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(ALL)
    unknown = [name for name in wanted if name not in ALL]
    if unknown:
        sys.exit(f"{__doc__}\nunknown: {unknown}; known: {list(ALL)}")
    for each in wanted:
        make(each, *ALL[each], NEW_TOKENS)
