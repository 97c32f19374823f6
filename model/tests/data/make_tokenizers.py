"""Makes tokenizer_configs.json: what transformers makes of texts where the small files beside
tokenizer.json say otherwise than it, and sentence-transformers with its own lower-casing; and
llama_tokenizers.json: the same of a tokenizer with the normalizer of the first Llamas.

    python make_tokenizers.py

Needs transformers (5.24.0) and sentence-transformers; the tests do not.
Each case is a tiny model with fields changed, by file; a field or file that is null is taken out.
"""

import base64
import itertools
import json
import shutil
import struct
import tempfile
from pathlib import Path

from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
CONFIG, TOKENIZER, SENTENCE = (
    "tokenizer_config.json",
    "tokenizer.json",
    "sentence_bert_config.json",
)
ADDED, MAP = "added_tokens.json", "special_tokens_map.json"


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
            if isinstance(changes, str):
                path.write_text(changes)
                continue
            if not path.exists():
                path.write_text("{}")
            path.write_text(json.dumps(changed(json.loads(path.read_text()), changes)))
        if any(name.startswith("sentence_") for name in files):
            found = SentenceTransformer(str(directory), device="cpu").preprocess([text])
            ids, types, places = found["input_ids"][0].tolist(), None, None
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(directory))
            texts = [text] if pair is None else [text, pair]
            found = tokenizer(*texts, truncation=True, return_offsets_mapping=True)
            ids, types = found["input_ids"], found.get("token_type_ids")
            places = found["offset_mapping"] if pair is None else None
    row = dict(model=model, files=files, text=text, pair=pair)
    return dict(row, ids=ids, types=types, places=places)


def token(content, **more):
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    return {"content": content, **flags, **more}


def letters(changes):
    """A map of letters as SentencePiece has it: a trie, in which the children of a node lie at its base
    with their bytes, and the texts behind it."""
    tree, texts = {}, b""
    for letter, text in changes.items():
        node = tree
        for byte in letter.encode():
            node = node.setdefault(byte, {})
        node[0] = len(texts)
        texts += text.encode() + b"\0"
    units, bases = {0: 0}, set()

    def put(at, label, node):
        def is_free(base):
            return base not in bases and not any(base ^ byte in units for byte in node)

        base = next(filter(is_free, itertools.count(1)))
        bases.add(base)
        units[at] = label | (0 in node) << 8 | (at ^ base) << 10
        units.update({base ^ byte: 0 if byte else 1 << 31 | inner for byte, inner in node.items()})
        for byte, inner in node.items():
            if byte:
                put(base ^ byte, byte, inner)

    put(0, 0, tree)
    trie = [units.get(at, 0) for at in range(max(units) + 1)]
    raw = struct.pack(f"<{len(trie) + 1}I", 4 * len(trie), *trie) + texts
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}


def in_order(fields):
    return json.dumps({**json.loads((HERE / "tiny-bert" / CONFIG).read_text()), **fields})


LEFT = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
WORDS, OTHERS = "pump motor bearing valve sensor", "warm cold the pump of the motor"
CASED = {"normalizer": {"lowercase": False}}
HAN = "温度 pump 压力"
BARE = {"added_tokens": []}
LIST = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\npump\n##s\nThe\n温 \n"
BY_WORDS = {TOKENIZER: None, "vocab.txt": LIST}
LISTED = "The pumps [MASK]温 é<new>"
ROBERTA = {"tokenizer_class": "RobertaTokenizer"}
XLM = {"tokenizer_class": "XLMRobertaTokenizer"}
BARE_FRAME = {"post_processor": None}
OTHER_FRAME = {"post_processor": {"single": [{"Sequence": {"id": "A", "type_id": 0}}]}}
# What versions of transformers before 5 wrote for an XLM-R.
LETTERS = letters({"ﬁ": "fi", "Ａ": "A", "Ｂ": "B"})
STRIP = {"type": "Strip", "strip_left": False, "strip_right": True}
GAPS = "pump  the\tmotor\n pump "
LIGATED = " ﬁ  Ａir\tＢar pump "


def fewer(content):
    return {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": content}


def in_turn(*steps):
    return {"normalizer": {"type": "Sequence", "normalizers": steps}}


def model_xlm(**fields):
    return {"normalizer": None, "model": fields}


def with_bytes_of(letter):
    """The words of tiny-xlm-roberta, the last of them replaced by the bytes of a letter."""
    words = json.loads((HERE / "tiny-xlm-roberta" / TOKENIZER).read_text())["model"]["vocab"]
    names = [f"<0x{byte:02X}>" for byte in letter.encode()]
    return [*words[: -len(names)], *([name, -5.0] for name in names)]


BACKEND = {"tokenizer_class": "TokenizersBackend", "mask_token": None, "cls_token": None}
NAMED = "[CLS] the[MASK] [New] xpumpx <mask>[Other]</s>"
# Words of the vocabulary of tiny-bert.
SIZE = len(json.loads((HERE / "tiny-bert" / TOKENIZER).read_text())["model"]["vocab"])
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
    ("tiny-xlm-roberta", {CONFIG: XLM, TOKENIZER: {"normalizer": None}}, "pump pump"),
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
    # What versions 2 and 3 called the limit.
    ("tiny-bert", {CONFIG: {"model_max_length": None, "max_len": 4}}, WORDS),
    ("tiny-bert", {CONFIG: {"model_max_length": 5, "max_len": 4}}, WORDS),
    # Tokens that are named by what they are for, or in a list, and by no number.
    ("tiny-bert", {TOKENIZER: BARE}, NAMED),
    ("tiny-bert", {TOKENIZER: BARE, CONFIG: {"mask_token": "pump"}}, NAMED),
    ("tiny-bert", {TOKENIZER: BARE, CONFIG: {"tokenizer_class": "TokenizersBackend"}}, NAMED),
    ("tiny-bert", {TOKENIZER: BARE, CONFIG: BACKEND}, NAMED),
    ("tiny-roberta", {TOKENIZER: BARE, CONFIG: {"tokenizer_class": "RobertaTokenizer"}}, NAMED),
    ("tiny-bert", {CONFIG: {"additional_special_tokens": ["[New]", "pump"]}}, NAMED),
    ("tiny-bert", {CONFIG: {"extra_special_tokens": ["[New]", "[Other]"]}}, NAMED),
    ("tiny-bert", {CONFIG: {"extra_special_tokens": {"new_token": "[New]"}}}, NAMED),
    # As texts, since the names are in an order of their own.
    ("tiny-bert", {CONFIG: in_order({"z_token": "[New]", "b_token": "[Other]"})}, NAMED),
    (
        "tiny-bert",
        {CONFIG: in_order({"extra_special_tokens": {"z": "[New]", "b": "[Other]"}})},
        NAMED,
    ),
    ("tiny-bert", {CONFIG: {"other_token": "[Other]", "extra_special_tokens": ["[New]"]}}, NAMED),
    (
        "tiny-bert",
        {
            CONFIG: {
                "extra_special_tokens": ["[Other]"],
                "additional_special_tokens": ["[New]"],
            },
        },
        NAMED,
    ),
    (
        "tiny-bert",
        {CONFIG: {"extra_special_tokens": {}, "additional_special_tokens": ["[New]"]}},
        NAMED,
    ),
    (
        "tiny-bert",
        {
            CONFIG: {
                "extra_special_tokens": {"other": "[Other]"},
                "additional_special_tokens": ["[New]"],
            },
        },
        NAMED,
    ),
    ("tiny-bert", {MAP: {"additional_special_tokens": ["[New]"]}}, NAMED),
    ("tiny-bert", {MAP: {"mask_token": {**token("pump"), "lstrip": True}}}, NAMED),
    ("tiny-bert", {MAP: {"mask_token": "pump"}, CONFIG: {"added_tokens_decoder": {}}}, NAMED),
    ("tiny-bert", {ADDED: {"[New]": SIZE, "[Other]": SIZE + 1}}, NAMED),
    ("tiny-bert", {ADDED: {"[New]": SIZE, "[MASK]": 400, "pump": 401}}, NAMED),
    (
        "tiny-bert",
        {ADDED: {"[New]": SIZE}, MAP: {"additional_special_tokens": ["[Other]", "[New]"]}},
        NAMED + "[new]",
    ),
    ("tiny-bert", {ADDED: {"[New]": SIZE}, MAP: {"mask_token": "[New]"}}, NAMED + "[new]"),
    (
        "tiny-bert",
        {ADDED: {"[New]": SIZE}, CONFIG: {"extra_special_tokens": {"new_token": "[New]"}}},
        NAMED + "[new]",
    ),
    ("tiny-bert", {CONFIG: {"split_special_tokens": True}}, "[CLS] the [MASK] pump"),
    # Without a tokenizer.json, and with a list of words.
    ("tiny-bert", BY_WORDS, LISTED),
    ("tiny-bert", {**BY_WORDS, CONFIG: {"do_lower_case": False, "tokenizer_class": None}}, LISTED),
    ("tiny-bert", {**BY_WORDS, CONFIG: {"cls_token": "<c>", "sep_token": "pump"}}, LISTED),
    ("tiny-bert", {**BY_WORDS, MAP: {"unk_token": "[MASK]"}}, LISTED),
    ("tiny-bert", {**BY_WORDS, ADDED: {"<new>": 10}}, LISTED),
    ("tiny-bert", {**BY_WORDS, CONFIG: {"max_len": 4, "model_max_length": None}}, LISTED),
    (
        "tiny-distilbert",
        {**BY_WORDS, CONFIG: {"tokenizer_class": "DistilBertTokenizer"}},
        LISTED,
    ),
    ("tiny-rerank-bert", BY_WORDS, "the pump", LISTED),
    # All that a class makes anew, whatever the file has.
    ("tiny-bert", {TOKENIZER: BARE_FRAME}, "the pump"),
    ("tiny-rerank-bert", {TOKENIZER: BARE_FRAME}, "the pump", "the motor"),
    ("tiny-bert", {TOKENIZER: OTHER_FRAME}, "the pump"),
    ("tiny-bert", {CONFIG: {"cls_token": "[MASK]"}}, "the pump [CLS] [MASK]"),
    ("tiny-rerank-bert", {MAP: {"sep_token": "pump"}}, "the motor", "the pump"),
    ("tiny-bert", {TOKENIZER: {"model": {"max_input_chars_per_word": 4}}}, WORDS),
    ("tiny-bert", {TOKENIZER: {"model": {"max_input_chars_per_word": 400}}}, "pump" * 26),
    ("tiny-bert", {TOKENIZER: {"model": {"unk_token": "[MASK]"}}}, "the ☃ pump"),
    ("tiny-bert", {CONFIG: {"unk_token": "[MASK]"}}, "the ☃ pump"),
    ("tiny-roberta", {CONFIG: ROBERTA, TOKENIZER: {"model": {"dropout": 1.0}}}, WORDS),
    ("tiny-roberta", {CONFIG: ROBERTA, TOKENIZER: BARE_FRAME}, "pump"),
    ("tiny-roberta", {CONFIG: ROBERTA, TOKENIZER: BARE_FRAME}, "pump", "motor"),
    (
        "tiny-roberta",
        {CONFIG: {**ROBERTA, "cls_token": "<mask>", "sep_token": "<unk>"}},
        "pump <s>",
        "motor</s><unk>",
    ),
    ("tiny-xlm-roberta", {CONFIG: XLM, TOKENIZER: {"normalizer": None, **BARE_FRAME}}, "pump"),
    (
        "tiny-xlm-roberta",
        {CONFIG: XLM, TOKENIZER: {"normalizer": None, **BARE_FRAME}},
        "pump",
        "the motor",
    ),
    (
        "tiny-xlm-roberta",
        {
            CONFIG: {**XLM, "bos_token": "<mask>", "cls_token": "<pad>", "eos_token": "<unk>"},
            TOKENIZER: {"normalizer": None},
        },
        "pump <s>",
        "motor</s><unk>",
    ),
    ("tiny-xlm-roberta", {CONFIG: XLM, TOKENIZER: {"normalizer": None}}, GAPS),
    ("tiny-xlm-roberta", {CONFIG: XLM, TOKENIZER: in_turn(STRIP, fewer(" "))}, GAPS),
    *(
        ("tiny-xlm-roberta", {CONFIG: XLM, TOKENIZER: steps}, LIGATED)
        for steps in [
            {"normalizer": None},
            {"normalizer": LETTERS},
            in_turn(LETTERS, fewer(" ")),
            in_turn(LETTERS, STRIP, fewer("▁")),
        ]
    ),
    ("tiny-xlm-roberta", {CONFIG: XLM, TOKENIZER: model_xlm(unk_id=0)}, "☃ pump"),
    (
        "tiny-xlm-roberta",
        {CONFIG: XLM, TOKENIZER: model_xlm(byte_fallback=True, vocab=with_bytes_of("☃"))},
        "☃ pump",
    ),
    # Where tokens stand in a text.
    *(
        ("tiny-roberta", {CONFIG: {**ROBERTA, **how}}, "pump  the é motor")
        for how in [
            {},
            {"trim_offsets": False},
            {"add_prefix_space": True},
            {"add_prefix_space": True, "trim_offsets": False},
        ]
    ),
    # Names that are others for the same classes.
    *(
        ("tiny-rerank-bert", {CONFIG: {"tokenizer_class": name, "do_lower_case": False}}, *pair)
        for name in [
            "ElectraTokenizer",
            "MobileBertTokenizerFast",
            "SqueezeBertTokenizer",
            "LayoutLMTokenizer",
            "LxmertTokenizerFast",
            "ConvBertTokenizer",
            "DPRQuestionEncoderTokenizer",
            "DPRContextEncoderTokenizerFast",
        ]
        for pair in [("The Pump",), ("the pump", "The motor")]
    ),
    # One takes the steps of the file, but not what stands around a text; two have small letters always.
    *(
        ("tiny-rerank-bert", {**files, CONFIG: {"tokenizer_class": name, **how}}, *pair)
        for name in ["ConvBertTokenizerFast", "DPRContextEncoderTokenizer"]
        for files, how, *pair in [
            ({TOKENIZER: CASED}, {"do_lower_case": True}, "The Pump"),
            ({TOKENIZER: BARE_FRAME}, {"strip_accents": False}, "Crème", "the"),
            (BY_WORDS, {"do_lower_case": False}, LISTED),
        ]
    ),
    *(
        ("tiny-roberta", {CONFIG: {"tokenizer_class": name, "add_prefix_space": True}}, "pump")
        for name in ["LongformerTokenizer", "BartTokenizerFast", "LEDTokenizer"]
    ),
    (
        "tiny-rerank-bert",
        {**BY_WORDS, CONFIG: {"tokenizer_class": "ElectraTokenizer"}},
        "the pump",
        LISTED,
    ),
]

LLAMA = "LlamaTokenizer"
LLAMAS = [
    ("llama", {"tokenizer_class": LLAMA}),
    ("llama", {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}),
    ("llama", {"tokenizer_class": LLAMA, "legacy": False}),
    ("llama", {"tokenizer_class": LLAMA, "legacy": True, "add_prefix_space": False}),
    ("llama", {"tokenizer_class": LLAMA, "legacy": True, "add_prefix_space": True}),
    ("llama", {"tokenizer_class": LLAMA, "split_special_tokens": True}),
    ("llama", {"tokenizer_class": "CodeLlamaTokenizer", "legacy": True}),
    ("llama", {"tokenizer_class": "CodeLlamaTokenizerFast", "add_prefix_space": False}),
    ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ("llama", {}),
    ("mistral", {"tokenizer_class": LLAMA}),
    ("qwen3", {"tokenizer_class": LLAMA, "legacy": True}),
    ("qwen3", {"tokenizer_class": "CodeLlamaTokenizerFast"}),
    ("llama", {"tokenizer_class": "CodeLlamaTokenizer", "bos_token": "the", "add_bos_token": False}),
    ("llama", {"tokenizer_class": "CodeLlamaTokenizer", "bos_token": None, "eot_token": None}),
    ("llama", {"tokenizer_class": "CodeLlamaTokenizer", "x_token": "<x>"}),
]
LLAMA_TEXTS = [
    "the pump",
    "a</s>b",
    " the",
    "",
    "  ",
    "<s> the </s>  pump",
    "</s>",
    "<|user|>\nthe pump?</s>\n<|assistant|>\n",
    "温 é",
    "a ▁<PRE> the▁<SUF>pump ▁<MID>▁<EOT> <x>",
]


def llama_words():
    """A tokenizer as the first Llamas have it: a sign for spaces, and bytes for what it does not know."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    made.train_from_iterator(["the pump and the motor of a pump <|user|> : ?"] * 3, trainer)
    file = json.loads(made.to_str())
    tokens = [dict(id=id, **token(name)) for id, name in enumerate(["<unk>", "<s>", "</s>"])]
    steps = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    file.update(
        added_tokens=tokens,
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=None,
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        post_processor={
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
    )
    file["model"].update(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return file


def llama(file, model_type, config, own):
    """The texts in tokens, and these and their ends as the answers that they may be."""
    with tempfile.TemporaryDirectory() as directory:
        for name, content in [
            (TOKENIZER, file),
            (CONFIG, config),
            ("config.json", {"model_type": model_type, **own}),
        ]:
            (Path(directory) / name).write_text(json.dumps(content))
        tokenizer = AutoTokenizer.from_pretrained(directory)
        texts = [[text, tokenizer(text)["input_ids"]] for text in LLAMA_TEXTS]
        answers = [ids[start:] for _, ids in texts for start in (0, 2) if len(ids) > start]
        answers = [[ids, tokenizer.decode(ids, skip_special_tokens=True)] for ids in answers]
        special = tokenizer.special_tokens_map
    found = dict(texts=texts, answers=answers, special=special)
    return dict(model_type=model_type, config=config, own=own, **found)


def write(name, head, rows, tail):
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (HERE / name).write_text(f"{head}{rows}{tail}\n", encoding="utf-8")


if __name__ == "__main__":
    write("tokenizer_configs.json", "[", [case(*each) for each in CASES], "]")
    file = llama_words()
    cases = [llama(file, *each, {}) for each in LLAMAS]
    cases.append(llama(file, "llama", {}, {"tokenizer_class": LLAMA}))
    head = '{"tokenizer": ' + json.dumps(file, ensure_ascii=False) + ',\n"cases": ['
    write("llama_tokenizers.json", head, cases, "]}")
