"""Reads the result of a job by its id, with the ordinary client of a broker.

usage: results.py URL QUEUE ID [--pieces]

Prints one JSON object, or nothing where there is no result; with --pieces, what there is of an answer
that comes in pieces, and the attempt that they are of. What it does is what docs/clients.md
says.
"""

import argparse
import asyncio
import importlib
import json
import pathlib
import sys
import tempfile
import time
import urllib.parse

PROTOS = pathlib.Path(__file__).resolve().parents[2] / "proto/proto"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("queue")
    parser.add_argument("id")
    parser.add_argument("--pieces", action="store_true")
    args = parser.parse_args()
    scheme = urllib.parse.urlsplit(args.url).scheme
    readers = {"nats": over_nats, "redis": over_redis}
    if args.pieces:
        readers = {"nats": pieces_over_nats, "redis": pieces_over_redis}
    found = readers[scheme](args.url, args.queue, args.id)
    if found is not None:
        print(json.dumps(found))


def token(text):
    """An id as it stands in a subject of NATS."""
    plain = lambda byte: chr(byte).isalnum() and byte < 128 or byte in b"_-"
    return "".join(chr(byte) if plain(byte) else f"={byte:02X}" for byte in text.encode())


def over_nats(url, queue, id):
    import nats
    from nats.js.errors import NotFoundError

    async def talk():
        client = await nats.connect(url)
        try:
            subject = f"ebb.{queue}.results.{token(id)}"
            return await client.jetstream().get_last_msg(f"EBB_RESULTS_{queue}", subject)
        except NotFoundError:
            return None
        finally:
            await client.drain()

    message = asyncio.run(talk())
    # A record without a body says of which attempt the pieces count.
    if message is None or not message.data:
        return None
    result = schema().JobResult.FromString(message.data)
    told = {"attempt": result.attempt, "outcome": result.WhichOneof("outcome")}
    if told["outcome"] == "completed":
        return {**told, "content_type": result.completed.content_type, "body": result.completed.body.decode()}
    return {**told, "kind": result.failed.kind, "reason": result.failed.reason}


def pieces_over_nats(url, queue, id):
    import nats
    from nats.js.errors import NotFoundError

    async def talk():
        client = await nats.connect(url)
        stream, pieces = client.jetstream(), []
        try:
            last = lambda place: stream.get_last_msg(f"EBB_RESULTS_{queue}", f"ebb.{queue}.{place}")
            record = await last(f"results.{token(id)}")
            attempt, epoch = map(int, (record.headers or {}).get("ebb-pieces", "0:0").split(":"))
            # The first record of an attempt gives its pieces their number.
            place = f"chunks.{token(id)}.{epoch or record.seq}"
            while True:
                pieces.append((await last(f"{place}.{len(pieces)}")).data.decode())
        except NotFoundError:
            return {"attempt": attempt, "pieces": pieces} if pieces else None
        finally:
            await client.drain()

    return asyncio.run(talk())


def pieces_over_redis(url, queue, id):
    import redis

    client, name, pieces = redis.Redis.from_url(url), f"ebb:{{{queue}}}:chunks:{id}", []
    attempt = client.hget(name, "attempt")
    while (piece := client.hget(name, f"piece:{len(pieces)}")) is not None:
        pieces.append(piece.decode())
    # Where another attempt began meanwhile, these may be of both.
    if client.hget(name, "attempt") != attempt:
        return pieces_over_redis(url, queue, id)
    return {"attempt": int(attempt), "pieces": pieces} if pieces else None


def schema():
    """The module that protoc makes of ebb/v1/result.proto."""
    from grpc_tools import protoc

    folder = tempfile.mkdtemp()
    proto = PROTOS / "ebb/v1/result.proto"
    if protoc.main(["protoc", f"-I{PROTOS}", f"--python_out={folder}", str(proto)]) != 0:
        sys.exit("protoc failed")
    sys.path.insert(0, folder)
    return importlib.import_module("ebb.v1.result_pb2")


def over_redis(url, queue, id):
    import redis

    client = redis.Redis.from_url(url)
    fate = client.hget(f"ebb:{{{queue}}}:fates", id)
    if fate is None:
        return None
    _, until_ms, part = fate.split()
    if int(until_ms) <= time.time() * 1000:
        return None
    record = client.hget(f"ebb:{{{queue}}}:results:{part.decode()}", id)
    if record is None:
        return None
    line, body = record.split(b"\n", 1)
    outcome, attempt, _, content_type = line.decode().split(" ", 3)
    told = {"attempt": int(attempt), "outcome": outcome}
    if outcome == "completed":
        return {**told, "content_type": content_type, "body": body.decode()}
    # What a completed one is, a failed one has no need of: its kind stands there.
    return {**told, "kind": content_type, "reason": body.decode()}


if __name__ == "__main__":
    main()
