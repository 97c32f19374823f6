"""OpenAI's own client, which knows nothing of Ebb, and what it makes of a gateway.

usage: openai_client.py BASE_URL KEY LIMITED_KEY CHAT_MODEL EMBEDDING_MODEL

Asks for models, vectors, a conversation whole and in pieces, and for what must be refused; prints one
JSON object with what it got. LIMITED_KEY may ask once a minute.
"""

import json
import sys

import openai

MESSAGES = [{"role": "user", "content": "the pump is warm"}]
TEXTS = ["the pump is warm", "a valve", "the tide turns"]


def main():
    base_url, key, limited_key, chat_model, embedding_model = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60)
    report = {
        "models": sorted(model.id for model in client.models.list()),
        "model": client.models.retrieve(chat_model).id,
        "vectors": vectors(client, embedding_model),
        "answers": [answer(client, chat_model, seed) for seed in (1, 2)],
        "streamed": streamed(client, chat_model),
        "completion": completion(client, chat_model),
    }
    limited = openai.OpenAI(base_url=base_url, api_key=limited_key, max_retries=0, timeout=60)
    limited.models.list()
    stranger = openai.OpenAI(base_url=base_url, api_key="nobody", max_retries=0, timeout=60)
    ask = client.chat.completions.create
    report["refused"] = {
        "unknown model": refused(lambda: ask(model="no-such", messages=MESSAGES)),
        "tools": refused(lambda: ask(model=chat_model, messages=MESSAGES, tools=[tool()])),
        "too warm": refused(lambda: ask(model=chat_model, messages=MESSAGES, temperature=3)),
        "unknown key": refused(stranger.models.list),
        "too often": refused(limited.models.list),
    }
    print(json.dumps(report))


def vectors(client, model):
    # Without a format it asks for base64 and makes numbers of that.
    default = client.embeddings.create(model=model, input=TEXTS)
    floats = client.embeddings.create(model=model, input=TEXTS, encoding_format="float")
    short = client.embeddings.create(model=model, input=TEXTS[0], dimensions=8)
    return {
        "default": [one.embedding for one in default.data],
        "floats": [one.embedding for one in floats.data],
        "short": short.data[0].embedding,
        "tokens": default.usage.prompt_tokens,
    }


def answer(client, model, seed):
    made = client.chat.completions.create(
        model=model, messages=MESSAGES, max_completion_tokens=20, temperature=1, seed=seed, n=2
    )
    choices = [choice.message.content for choice in made.choices]
    return {"choices": choices, "tokens": made.usage.completion_tokens, "object": made.object}


def streamed(client, model):
    options = {"include_usage": True}
    said = {"temperature": 1, "seed": 1, "max_completion_tokens": 20}
    chunks = list(
        client.chat.completions.create(
            model=model, messages=MESSAGES, stream=True, stream_options=options, **said
        )
    )
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    return {
        "text": "".join(texts),
        "chunks": len(chunks),
        "role": chunks[0].choices[0].delta.role,
        "reason": reasons[-1],
        "tokens": chunks[-1].usage.completion_tokens,
    }


def completion(client, model):
    made = client.completions.create(model=model, prompt=["the pump", "a valve"], max_tokens=5)
    return [choice.index for choice in made.choices]


def refused(ask):
    try:
        ask()
    except openai.APIStatusError as error:
        return {"class": type(error).__name__, "param": error.param, "code": error.code}
    return None


def tool():
    return {"type": "function", "function": {"name": "look", "parameters": {}}}


if __name__ == "__main__":
    main()
