"""Makes tokenizer_configs.json: what transformers makes of texts where the small files beside
tokenizer.json say otherwise than it, and sentence-transformers with its own lower-casing.

    python make_tokenizers.py

Needs transformers and sentence-transformers; the tests do not.
Each case is a tiny model with fields changed, by file; a field or file that is null is taken out.
"""

import json
import shutil
import tempfile
from pathlib import Path

from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
CONFIG, TOKENIZER, SENTENCE = (
    "tokenizer_config.json",
    "tokenizer.json",
    "sentence_bert_config.json",
)


def changed(value, changes):
    for key, change in changes.items():
        if change is None:
            value.pop(key, None)
        elif isinstance(change, dict) and isinstance(value.get(key), dict):
            changed(value[key], change)
        else:
            value[key] = change
    return value


def case(model, files, text, pair=None):
    with tempfile.TemporaryDirectory() as raw:
        directory = Path(raw) / "model"
        shutil.copytree(HERE / model, directory)
        for name, changes in files.items():
            path = directory / name
            if changes is None:
                path.unlink()
                continue
            if not path.exists():
                path.write_text("{}")
            path.write_text(json.dumps(changed(json.loads(path.read_text()), changes)))
        if any(name.startswith("sentence_") for name in files):
            found = SentenceTransformer(str(directory), device="cpu").preprocess([text])
            ids, types = found["input_ids"][0].tolist(), None
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(directory))
            found = tokenizer(*[text] if pair is None else [text, pair], truncation=True)
            ids, types = found["input_ids"], found.get("token_type_ids")
    return dict(model=model, files=files, text=text, pair=pair, ids=ids, types=types)


def token(content, **more):
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    return {"content": content, **flags, **more}


LEFT = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
WORDS, OTHERS = "pump motor bearing valve sensor", "warm cold the pump of the motor"
CASED = {"normalizer": {"lowercase": False}}
HAN = "温度 pump 压力"
CASES = [
    ("tiny-bert", {CONFIG: {"do_lower_case": False}}, "The Pump"),
    ("tiny-bert", {CONFIG: {"do_lower_case": None}, TOKENIZER: CASED}, "The Pump"),
    ("tiny-bert", {CONFIG: {"strip_accents": False}}, "Crème brûlée"),
    ("tiny-bert", {CONFIG: {"tokenize_chinese_chars": False}}, HAN),
    ("tiny-bert", {CONFIG: {"do_lower_case": False, "tokenizer_class": None}}, "The Pump"),
    (
        "tiny-bert",
        {CONFIG: {"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"}},
        "The Pump",
    ),
    (
        "tiny-distilbert",
        {CONFIG: {"do_lower_case": False, "tokenizer_class": "DistilBertTokenizer"}},
        "The Pump",
    ),
    (
        "tiny-roberta",
        {CONFIG: {"add_prefix_space": True, "tokenizer_class": "RobertaTokenizer"}},
        "pump",
    ),
    ("tiny-roberta", {CONFIG: {"add_prefix_space": True}}, "pump"),
    ("tiny-roberta", {CONFIG: {"add_prefix_space": True, "tokenizer_class": None}}, "pump"),
    ("tiny-xlm-roberta", {CONFIG: {"tokenizer_class": "XLMRobertaTokenizer"}}, "pump pump"),
    ("tiny-bert", {CONFIG: {"truncation_side": "left", "model_max_length": 4}}, WORDS),
    ("tiny-bert", {CONFIG: {"model_max_length": 4}, TOKENIZER: {"truncation": LEFT}}, WORDS),
    (
        "tiny-bert",
        {
            CONFIG: {"model_max_length": 4, "truncation_side": "right"},
            TOKENIZER: {"truncation": LEFT},
        },
        WORDS,
    ),
    (
        "tiny-rerank-bert",
        {CONFIG: {"truncation_side": "left", "model_max_length": 9}},
        WORDS,
        OTHERS,
    ),
    ("tiny-rerank-bert", {}, "pump motor", "warm"),
    (
        "tiny-rerank-bert",
        {CONFIG: {"model_input_names": ["input_ids", "attention_mask"]}},
        "pump motor",
        "warm",
    ),
    ("tiny-rerank-bert", {CONFIG: {"tokenizer_class": "TokenizersBackend"}}, "pump motor", "warm"),
    ("tiny-roberta", {SENTENCE: {"max_seq_length": 6}}, WORDS),
    (
        "tiny-roberta",
        {SENTENCE: {"max_seq_length": 9, "tokenizer_args": {"model_max_length": 5}}},
        WORDS,
    ),
    (
        "tiny-roberta",
        {SENTENCE: None, "sentence_roberta_config.json": {"max_seq_length": 7}},
        WORDS,
    ),
    # A word of the vocabulary that becomes a token of its own, and one beside the vocabulary.
    (
        "tiny-roberta",
        {CONFIG: {"added_tokens_decoder": {"330": token("<new>")}}},
        "a<new> b",
    ),
    (
        "tiny-bert",
        {CONFIG: {"added_tokens_decoder": {"133": token("pump", special=False)}}},
        "xpumpx",
    ),
    ("tiny-roberta", {SENTENCE: {"do_lower_case": True}}, "The <PAD> <pad> PUMP"),
    ("tiny-bert", {SENTENCE: {"do_lower_case": True}}, "[CLS] The [MASK] [cls]"),
]


if __name__ == "__main__":
    rows = ",\n".join(json.dumps(case(*each), ensure_ascii=False) for each in CASES)
    (HERE / "tokenizer_configs.json").write_text("[" + rows + "]\n", encoding="utf-8")
