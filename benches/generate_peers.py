"""The other side of `ebb-bench generate`: transformers on torch, one JSON line per call.

    {"model": DIR, "threads": N, "device": NAME}                   -> {"peers": {NAME: {...}}}
    {"peer": NAME, "prompts": [[...], ...], "new": [N, ...]}       -> {"seconds": S, "tokens": [[...], ...]}
                                                                  or {"error": WHY}

All prompts are as long as each other and are answered in one batch, as `generate` does it: until the
longest answer is whole, each of the likeliest tokens. `new` says how many tokens of each count.
The first line a peer cannot be had for says so, with the remedy where one is known.
"""

import importlib.metadata
import json
import os
import sys
import time

# Only answers may stand on stdout; whatever a library prints goes to stderr.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def load(directory, threads, device):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)

    def peer(dtype):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval().to(device)

        def generate(prompts, longest):
            with torch.inference_mode():
                ids = torch.tensor(prompts, device=device)
                made = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    min_new_tokens=longest,
                    max_new_tokens=longest,
                    do_sample=False,
                    pad_token_id=0,
                )
                return made[:, ids.shape[1] :].tolist()

        return generate

    said = {
        "version": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
    }
    peers, saids = {}, {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        try:
            peers[name], saids[name] = peer(dtype), said
        except Exception as error:
            # The other one, or ours, may have room all the same.
            saids[name] = {"missing": why(error)}
        if name not in peers:
            give_back()
    return peers, saids


def start(ask):
    try:
        return load(ask["model"], ask["threads"], ask["device"])
    except ImportError as error:
        missing = {"missing": f"{error}; pip install torch transformers"}
    except Exception as error:
        missing = {"missing": why(error)}
    return {}, {"f32": missing, "bf16": missing}


def why(error):
    return f"{type(error).__name__}: {error}"


def give_back():
    import torch

    # What somebody held that found no room: others may want it.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def generated(generate, prompts, new):
    begin = time.perf_counter()
    made = generate(prompts, max(new))
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "tokens": [row[:n] for row, n in zip(made, new)]}


def answer(value):
    ANSWERS.write(json.dumps(value) + "\n")
    ANSWERS.flush()


def main():
    peers, said = start(json.loads(sys.stdin.readline()))
    answer({"peers": said})
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            told = generated(peers[ask["peer"]], ask["prompts"], ask["new"])
        except Exception as error:
            told = {"error": why(error)}
        if "error" in told:
            give_back()
        answer(told)


if __name__ == "__main__":
    main()
