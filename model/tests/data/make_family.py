"""Makes the tiny models of the BERT family and what transformers makes of them, for family.rs.

    python make_family.py [NAME...]     writes NAME/ and NAME.json, all of them without a name

Needs torch, transformers and sentence-transformers; the tests do not.
The weights are rounded to half precision before anything is computed, so the files are small and
the references are those of single precision all the same.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    TokenClassificationPipeline,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from make_reference import HERE, SEED, cases, tiny_tokenizer, write

LIMIT = 64
WIDTH = 16
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "a motor hums; its bearing is warm, and the pressure falls",
    "query: passage: the pump and its valve, the sensor of the bearing",
    "Crème brûlée, naïve façade, Ångström, İstanbul, Straße",
    "温度が高い 压力 vibration 振動",
    "Ada Lovelace met Charles Babbage in London, near the Thames.",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
PAIRS = [
    ("how warm is the pump?", ["the bearing of the pump is warm", "a fox jumps", "", "pump"]),
    ("", ["an empty question", " "]),
    ("pressure " * 40, ["valve " * 50, "short", "the pressure falls " * 30]),
    ("温度が高い", ["压力 vibration", "Crème brûlée 🚀"]),
    ("same text twice", ["same text twice", "same text twice"]),
]
SENTENCES = [
    "Ada Lovelace met Charles Babbage in London, near the Thames.",
    "the quick brown fox jumps over the lazy dog",
    "",
    "  two  spaces before  a   word ",
    "Crème brûlée, naïve façade; 温度が高い 🚀 emoji",
    "pump motor bearing valve sensor " * 30,
]


def wordpiece(directory):
    tokenizer, _ = tiny_tokenizer(directory)
    tokenizer.model_max_length = LIMIT
    return tokenizer


def wrapped(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=LIMIT,
    )


def bytes_bpe(_):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return wrapped(tokenizer)


def unigram(_):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=180, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return wrapped(tokenizer)


def shape(tokenizer, **more):
    sizes = dict(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=LIMIT,
        # Wider than usual, so that attention is far from even and a slip shows.
        initializer_range=0.3,
    )
    return {**sizes, **more}


def roberta_shape(tokenizer, **more):
    # Positions begin behind the padding's.
    more = {"max_position_embeddings": LIMIT + 2, "layer_norm_eps": 1e-5, **more}
    return shape(tokenizer, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1, **more)


def distil_shape(tokenizer, **more):
    return dict(
        vocab_size=len(tokenizer),
        dim=WIDTH,
        n_layers=2,
        n_heads=2,
        hidden_dim=2 * WIDTH,
        max_position_embeddings=LIMIT,
        initializer_range=0.3,
        **more,
    )


def shaken(model):
    """Moves what starts at zero or one, or it is not tested; rounds to half precision."""
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 1:
                value.add_(torch.randn_like(value) * 0.2)
            value.copy_(value.half().float())
    return model.eval()


def halve(directory):
    path = directory / "model.safetensors"
    weights = {name: value.half() for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def fresh(name):
    shutil.rmtree(HERE / name, ignore_errors=True)
    return HERE / name


def encoder(name, make_tokenizer, make_model, pooling, normalise, prompts=None):
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as raw:
        tokenizer = make_tokenizer(Path(raw))
        shaken(make_model(tokenizer)).save_pretrained(raw)
        tokenizer.save_pretrained(raw)
        modules = [Transformer(raw), Pooling(WIDTH, pooling)]
        modules += [Normalize()] if normalise else []
        model = SentenceTransformer(modules=modules, prompts=prompts)
    models_of = {"default": model}
    model.save(str(fresh(name)), create_model_card=False)
    halve(HERE / name)
    shown = cases(LIMIT) + [{"text": "a <pad> b <mask> </s> c", "repeat": 1}]
    for prompt in prompts or {}:
        models_of[prompt] = Prompted(model, prompt)
    write(f"{name}.json", models_of, shown)


class Prompted:
    """A sentence encoder that puts a named prompt before each text."""

    def __init__(self, model, name):
        self.model, self.name = model, name

    def to(self, _):
        return self

    def eval(self):
        return self

    def encode(self, texts, **more):
        return self.model.encode(texts, prompt_name=self.name, **more)


def head(name, make_tokenizer, make_model):
    torch.manual_seed(SEED)
    directory = fresh(name)
    directory.mkdir()
    with tempfile.TemporaryDirectory() as raw:
        tokenizer = make_tokenizer(Path(raw))
    model = shaken(make_model(tokenizer))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    halve(directory)
    return tokenizer, model


def logits(tokenizer, model, *texts):
    inputs = tokenizer(*texts, padding=True, truncation=True, return_tensors="pt")
    if isinstance(model, DistilBertForSequenceClassification):
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return [rounded(row) for row in model(**inputs).logits]


def rounded(row):
    return [float(f"{float(x):.8g}") for x in row]


def dump(name, value):
    lines = ",\n".join(json.dumps(key) + ": " + json.dumps(part) for key, part in value.items())
    (HERE / f"{name}.json").write_text("{" + lines + "}\n", encoding="utf-8")


def classifier(name, make_tokenizer, make_model):
    tokenizer, model = head(name, make_tokenizer, make_model)
    shown = cases(LIMIT)
    texts = [case["text"] * case["repeat"] for case in shown]
    dump(name, {"cases": shown, "logits": logits(tokenizer, model, texts)})


def reranker(name, make_tokenizer, make_model, as_cross_encoder):
    tokenizer, model = head(name, make_tokenizer, make_model)
    rows = []
    for query, documents in PAIRS:
        found = logits(tokenizer, model, [query] * len(documents), documents)
        rows.append({"query": query, "documents": documents, "logits": [row[0] for row in found]})
    dump(name, {"pairs": rows})
    if as_cross_encoder:
        with tempfile.TemporaryDirectory() as raw:
            model.save_pretrained(raw)
            tokenizer.save_pretrained(raw)
            cross = CrossEncoder(raw)
        cross.save_pretrained(str(fresh(name)), create_model_card=False)
        halve(HERE / name)


def tagger(name, make_tokenizer, make_model):
    tokenizer, model = head(name, make_tokenizer, make_model)
    result = {"texts": SENTENCES}
    for kind in ("none", "simple"):
        pipeline = TokenClassificationPipeline(
            model=model, tokenizer=tokenizer, aggregation_strategy=kind, device="cpu"
        )
        # As the worker does: cut at what the model takes.
        pipeline.tokenizer.model_max_length = LIMIT
        found = [pipeline(text) if text else [] for text in SENTENCES]
        names = {"none": "entity", "simple": "entity_group"}
        result[kind] = [
            [[e[names[kind]], rounded([e["score"]])[0], e["start"], e["end"]] for e in entities]
            for entities in found
        ]
    dump(name, result)


def labels(names, **more):
    forward = dict(enumerate(names))
    return {"id2label": forward, "label2id": {v: k for k, v in forward.items()}, **more}


TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
BERT, ROBERTA, XLM, DISTIL = shape, roberta_shape, roberta_shape, distil_shape


def of(model, config, sizes, extra=None, **more):
    return lambda t: model(config(**sizes(t, **(extra or {}))), **more)


ALL = {
    "tiny-roberta": lambda name: encoder(
        name, bytes_bpe, of(RobertaModel, RobertaConfig, ROBERTA, add_pooling_layer=False), "lasttoken", True
    ),
    "tiny-xlm-roberta": lambda name: encoder(
        name,
        unigram,
        of(XLMRobertaModel, XLMRobertaConfig, XLM, add_pooling_layer=False),
        "cls",
        True,
        {"query": "query: ", "document": "passage: "},
    ),
    "tiny-distilbert": lambda name: encoder(
        name, wordpiece, of(DistilBertModel, DistilBertConfig, DISTIL), "mean", False
    ),
    "tiny-classes-bert": lambda name: classifier(
        name,
        wordpiece,
        of(
            BertForSequenceClassification,
            BertConfig,
            BERT,
            labels(["calm", "warm", "hot"], problem_type="single_label_classification"),
        ),
    ),
    "tiny-classes-roberta": lambda name: classifier(
        name,
        bytes_bpe,
        of(
            RobertaForSequenceClassification,
            RobertaConfig,
            ROBERTA,
            labels(["noise", "heat", "wear", "leak"], problem_type="multi_label_classification"),
        ),
    ),
    "tiny-classes-distilbert": lambda name: classifier(
        name,
        wordpiece,
        of(
            DistilBertForSequenceClassification,
            DistilBertConfig,
            DISTIL,
            labels(["NEGATIVE", "POSITIVE"]),
        ),
    ),
    "tiny-rerank-bert": lambda name: reranker(
        name,
        wordpiece,
        of(BertForSequenceClassification, BertConfig, BERT, labels(["LABEL_0"])),
        True,
    ),
    "tiny-rerank-xlm-roberta": lambda name: reranker(
        name,
        unigram,
        of(XLMRobertaForSequenceClassification, XLMRobertaConfig, XLM, labels(["LABEL_0"])),
        False,
    ),
    "tiny-tags-bert": lambda name: tagger(
        name, wordpiece, of(BertForTokenClassification, BertConfig, BERT, labels(TAGS))
    ),
    "tiny-tags-roberta": lambda name: tagger(
        name, bytes_bpe, of(RobertaForTokenClassification, RobertaConfig, ROBERTA, labels(TAGS))
    ),
    "tiny-tags-distilbert": lambda name: tagger(
        name,
        wordpiece,
        of(DistilBertForTokenClassification, DistilBertConfig, DISTIL, labels(TAGS)),
    ),
}


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(ALL)
    unknown = [name for name in wanted if name not in ALL]
    if unknown:
        sys.exit(f"{__doc__}\nunknown: {unknown}; known: {list(ALL)}")
    for each in wanted:
        ALL[each](each)
