"""The other side of `ebb-bench gpu`: sentence-transformers, eager and compiled, one JSON line per call.

    {"model": DIR, "device": NAME, "dtype": TYPE}    -> {"peers": {NAME: {...}}}
    {"peer": NAME, "ids": [[...], ...], "times": K}  -> {"seconds": S, "vectors": [[...], ...] or null}
                                                    or {"error": WHY}

The time is that of K forwards: the ids copied to the device, the model, the vectors read back, which
waits for it. Vectors come with a single forward only. All texts of a batch are of one length,
so that nobody pads.
The first line a peer cannot be had for says so, with the remedy where one is known.
"""

import copy
import importlib.metadata
import json
import os
import sys
import time

# Only answers may stand on stdout; whatever a library prints goes to stderr.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def start(ask):
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        missing = {"missing": f"{error}; pip install sentence-transformers"}
        return {}, {"eager": missing, "compiled": missing}
    device = ask["device"].split("-")[0]
    if device.startswith("cuda") and not torch.cuda.is_available():
        missing = {"missing": "torch finds no GPU; install a build of torch for its driver"}
        return {}, {"eager": missing, "compiled": missing}
    try:
        return load(torch, SentenceTransformer, device, ask)
    except Exception as error:
        missing = {"missing": why(error)}
    return {}, {"eager": missing, "compiled": missing}


def load(torch, SentenceTransformer, device, ask):
    dtype = getattr(torch, DTYPES[ask["dtype"]])
    model = SentenceTransformer(ask["model"], device=device).eval().to(dtype)
    said = {
        "version": importlib.metadata.version("torch"),
        "sentence_transformers": importlib.metadata.version("sentence-transformers"),
        "dtype": DTYPES[ask["dtype"]],
    }
    forwards = {"eager": forward(torch, model, device)}
    if not device.startswith("cuda"):
        # A processor only tries the bench, and compiling for it takes minutes.
        return forwards, {"eager": said, "compiled": {"missing": "it is compiled for a GPU only"}}
    mode = "reduce-overhead"
    try:
        forwards["compiled"] = forward(torch, compiled_copy(torch, model, mode), device)
    except Exception as error:
        return forwards, {"eager": said, "compiled": {"missing": why(error)}}
    return forwards, {"eager": said, "compiled": {**said, "mode": mode}}


def compiled_copy(torch, model, mode):
    compiled = copy.deepcopy(model)
    # As many shapes as are asked for, each compiled for itself, and captured into graphs.
    torch._dynamo.config.recompile_limit = 256
    name = next(name for name in ("model", "auto_model") if hasattr(compiled[0], name))
    setattr(compiled[0], name, torch.compile(getattr(compiled[0], name), mode=mode, dynamic=False))
    return compiled


def forward(torch, model, device):
    def run(ids):
        with torch.inference_mode():
            input_ids = ids.to(device)
            features = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
            return model(features)["sentence_embedding"].float().cpu().numpy()

    return run


def answer(value):
    # JSON has no number for what is none: such vectors are an error of their peer.
    ANSWERS.write(json.dumps(value, allow_nan=False) + "\n")
    ANSWERS.flush()


def why(error):
    return f"{type(error).__name__}: {error}"


def forwarded(forward, ids, times):
    import torch

    # From a list it takes longer than a forward, and no program that is meant to be fast would.
    ids = torch.tensor(ids)
    begin = time.perf_counter()
    for _ in range(times):
        vectors = forward(ids)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "vectors": vectors.tolist() if times == 1 else None}


def give_back():
    import torch

    # What a forward held that found no room: others may want it.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main():
    forwards, said = start(json.loads(sys.stdin.readline()))
    answer({"peers": said})
    for line in sys.stdin:
        ask = json.loads(line)
        failed = None
        try:
            answer(forwarded(forwards[ask["peer"]], ask["ids"], ask["times"]))
        except Exception as error:
            failed = why(error)
        if failed:
            give_back()
            answer({"error": failed})


if __name__ == "__main__":
    main()
