"""The other side of `ebb-bench encoder`: sentence-transformers and onnxruntime, one JSON line per call.

    {"model": DIR, "threads": N}                     -> {"peers": {NAME: {...}}}
    {"peer": NAME, "ids": [[...], ...], "times": K}  -> {"seconds": S, "vectors": [[...], ...]}
                                                    or {"error": WHY}

The time is that of K forwards after one that is not counted: tensors made from the ids, the model,
the vectors read back.
The first line a peer cannot be had for says so, with the remedy where one is known.
"""

import importlib.metadata
import json
import os
import sys
import tempfile
import time

# Only answers may stand on stdout; whatever a library prints goes to stderr.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def version(package):
    return importlib.metadata.version(package)


def load_torch(directory, threads):
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(directory, device="cpu").eval()

    def forward(ids):
        with torch.inference_mode():
            input_ids = torch.tensor(ids)
            features = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
            return model(features)["sentence_embedding"].numpy()

    said = {"version": version("torch"), "sentence_transformers": version("sentence-transformers")}
    return model, forward, said


def load_onnxruntime(model, threads):
    import numpy
    import onnxruntime
    import torch

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            return self.model(features)["sentence_embedding"]

    # Removed at the end: beside the weights of the model themselves.
    folder = tempfile.TemporaryDirectory(prefix="ebb-bench-")
    path = os.path.join(folder.name, "model.onnx")
    # Eval mode of the wrapper too, or dropout stays in the graph.
    wrapper = Wrapper().eval()
    # Two tensors: one for both would make one input of them.
    ids = torch.randint(1000, 2000, (2, 16))
    mask = torch.ones_like(ids)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=512)}
    torch.onnx.export(
        wrapper,
        (ids, mask),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["vectors"],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        dynamo=True,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [it.name for it in session.get_inputs()]

    def forward(ids):
        input_ids = numpy.array(ids, dtype=numpy.int64)
        arrays = {"input_ids": input_ids, "attention_mask": numpy.ones_like(input_ids)}
        return session.run(None, {name: arrays[name] for name in names})[0]

    forward.folder = folder
    return forward, {"version": version("onnxruntime")}


def start(ask):
    forwards, said = {}, {}
    try:
        model, forwards["torch"], said["torch"] = load_torch(ask["model"], ask["threads"])
    except Exception as error:
        said["torch"] = {"missing": why(error, "pip install sentence-transformers")}
        said["onnxruntime"] = {"missing": "the export needs the model in torch"}
        return forwards, said
    try:
        forwards["onnxruntime"], said["onnxruntime"] = load_onnxruntime(model, ask["threads"])
    except Exception as error:
        said["onnxruntime"] = {"missing": why(error, "pip install onnxruntime onnx onnxscript")}
    return forwards, said


def why(error, remedy=None):
    if remedy and isinstance(error, ImportError):
        return f"{error}; {remedy}"
    return f"{type(error).__name__}: {error}"


def forwarded(forward, ids, times):
    forward(ids)
    begin = time.perf_counter()
    for _ in range(times):
        vectors = forward(ids)
    return {"seconds": time.perf_counter() - begin, "vectors": vectors.tolist()}


def answer(value):
    # JSON has no number for what is none: such vectors are an error of their peer.
    ANSWERS.write(json.dumps(value, allow_nan=False) + "\n")
    ANSWERS.flush()


def main():
    forwards, said = start(json.loads(sys.stdin.readline()))
    answer({"peers": said})
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            answer(forwarded(forwards[ask["peer"]], ask["ids"], ask["times"]))
        except Exception as error:
            answer({"error": why(error)})


if __name__ == "__main__":
    main()
