"""Makes the reference vectors that golden.rs compares with, and the tiny model behind some of them.

    python make_reference.py tiny            writes tiny-bert/ and tiny-bert.json
    python make_reference.py dense           writes tiny-dense/, what stands behind it, and tiny-dense.json
    python make_reference.py minilm DIR      writes minilm.json from all-MiniLM-L6-v2 in DIR

Needs torch and sentence-transformers; the tests do not.
"""

import json
import shutil
import string
import sys
import tempfile
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizer

HERE = Path(__file__).resolve().parent
SEED = 20240917

SHORT = [
    "",
    " \t\n ",
    "pump",
    "The quick brown fox jumps over the lazy dog.",
    "A motor hums; its bearing is warm, and the pressure falls.",
    "Crème brûlée, naïve façade, Ångström, İstanbul, STRASSE und Straße",
    "温度が高い 压力 vibration 振動",
    "🚀🔥 emoji 👩‍🔧 joined, and e\u0301 composed late",
    "supercalifragilisticexpialidocious" * 4,
    "1,234.56 °C @ 3.1e-4 m/s² — “quoted” … \u200bzero\u00a0width",
    "[CLS] is [MASK] a [SEP] word",
    "tab\tand\nnewline\r\nand \u0000 null \ufffd",
]


def cases(limit):
    """A text is written as itself, or as a part and how often it is repeated."""
    shown = [{"text": text, "repeat": 1} for text in SHORT]
    for n_tokens in (17, 64, limit - 1, limit, limit + 1, 3 * limit):
        shown.append({"text": "pump ", "repeat": n_tokens - 2})
    shown.append({"text": "the bearing of the pump is warm, ", "repeat": limit})
    return shown


def texts_of(shown):
    return [case["text"] * case["repeat"] for case in shown]


def encode(model, texts, batch_size):
    with torch.no_grad():
        vectors = model.encode(texts, batch_size=batch_size, convert_to_numpy=True)
    return [[float(f"{x:.8g}") for x in vector] for vector in vectors]


def tiny_tokenizer(directory):
    words = """the a is of and in to it pump motor bearing valve sensor warm cold pressure
    temperature vibration falls rises hums high low quick brown fox jumps over lazy dog word
    emoji quoted zero width null tab new line mask class""".split()
    pieces = ["ing", "ed", "er", "s", "ly", "tion", "able", "un", "re"]
    marks = [c for c in string.punctuation] + list("°—“”…²")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary += list(string.ascii_lowercase + string.digits) + marks + list("温度压力が高振動ß🚀")
    vocabulary += ["##" + c for c in string.ascii_lowercase + string.digits] + ["##ß"]
    vocabulary += words + ["##" + piece for piece in pieces]
    vocabulary = list(dict.fromkeys(vocabulary))
    path = directory / "vocab.txt"
    path.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return BertTokenizer(str(path), do_lower_case=True, model_max_length=512), len(vocabulary)


def tiny():
    torch.manual_seed(SEED)
    raw = Path("/tmp/tiny-bert-raw")
    raw.mkdir(exist_ok=True)
    tokenizer, size = tiny_tokenizer(raw)
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        # Wider than usual, so that attention is far from even and a slip shows.
        initializer_range=0.3,
    )
    bert = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        # Biases start at zero and norms at one: move them, or they are not tested.
        for name, value in bert.named_parameters():
            if value.dim() == 1:
                value.add_(torch.randn_like(value) * 0.2)
    bert.save_pretrained(raw)
    tokenizer.save_pretrained(raw)

    transformer = Transformer(str(raw))
    pooled = {mode: Pooling(32, mode) for mode in ("mean", "cls", "max")}
    models = {
        "mean_normalised": SentenceTransformer(modules=[transformer, pooled["mean"], Normalize()]),
        "cls": SentenceTransformer(modules=[transformer, pooled["cls"]]),
        "max": SentenceTransformer(modules=[transformer, pooled["max"]]),
    }
    models["mean_normalised"].save(str(HERE / "tiny-bert"), create_model_card=False)
    write("tiny-bert.json", models, cases(512))


def dense():
    torch.manual_seed(SEED)
    tiny, pooled = Transformer(str(HERE / "tiny-bert")), Pooling(32, "cls")
    layers = [
        Dense(32, 6),
        Dense(6, 4, bias=False, activation_function=torch.nn.Identity()),
    ]
    models = {
        "one": SentenceTransformer(modules=[tiny, pooled, layers[0]]),
        "two_normalised": SentenceTransformer(modules=[tiny, pooled, *layers, Normalize()]),
    }
    with tempfile.TemporaryDirectory() as raw:
        models["two_normalised"].save(raw, create_model_card=False)
        for name in ["2_Dense", "3_Dense"]:
            shutil.rmtree(HERE / "tiny-dense" / name, ignore_errors=True)
            shutil.copytree(Path(raw) / name, HERE / "tiny-dense" / name)
        shutil.copy(Path(raw) / "modules.json", HERE / "tiny-dense")
    write("tiny-dense.json", models, cases(512)[:10])


def minilm(directory):
    write("minilm.json", {"mean_normalised": SentenceTransformer(directory)}, cases(256)[:22])


def write(name, models, shown):
    texts = texts_of(shown)
    first = next(iter(models.values()))
    tokens = [first.tokenizer(text, truncation=True)["input_ids"] for text in texts]
    for case, ids in zip(shown, tokens):
        case["tokens"] = len(ids)
        case["ids"] = ids[:24]
    result = {"cases": shown}
    for kind, model in models.items():
        model = model.to("cpu").eval()
        result[kind] = encode(model, texts, batch_size=len(texts))
    rows = ",\n".join(json.dumps(case) for case in shown)
    kinds = [
        json.dumps(kind) + ": [\n" + ",\n".join(json.dumps(row) for row in result[kind]) + "\n]"
        for kind in models
    ]
    text = '{"cases": [\n' + rows + "\n],\n" + ",\n".join(kinds) + "}\n"
    (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["tiny"]:
        tiny()
    elif sys.argv[1:] == ["dense"]:
        dense()
    elif sys.argv[1:2] == ["minilm"] and len(sys.argv) == 3:
        minilm(sys.argv[2])
    else:
        sys.exit(__doc__)
