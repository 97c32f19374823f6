"""A producer that knows nothing of Ebb: the ordinary client of a broker, and JSON bodies.

usage: producer.py URL QUEUE TEXT... [--header NAME=VALUE]... [--reply-to PLACE]

Sends {"input": TEXT} for each TEXT to the queue, with no header but those that are given. With
--reply-to it asks for the answers as messages, waits for as many, and prints one JSON object per
line: {"body": ..., "headers": {...}}.
"""

import argparse
import asyncio
import json
import sys
import urllib.parse

PATIENCE = 60.0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("queue")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--reply-to")
    args = parser.parse_args()
    headers = dict(pair.split("=", 1) for pair in args.header)
    if args.reply_to:
        headers["ebb-reply-to"] = args.reply_to
    bodies = [json.dumps({"input": text}).encode() for text in args.texts]
    scheme = urllib.parse.urlsplit(args.url).scheme
    send = {"nats": over_nats, "amqp": over_amqp, "redis": over_redis}[scheme]
    for body, told in send(args.url, args.queue, bodies, headers, args.reply_to):
        print(json.dumps({"body": body.decode(), "headers": told}), flush=True)


def over_nats(url, queue, bodies, headers, reply_to):
    import nats

    async def talk():
        replies = []
        client = await nats.connect(url)
        listener = await client.subscribe(reply_to) if reply_to else None
        stream = client.jetstream()
        for body in bodies:
            await stream.publish(f"ebb.{queue}.jobs", body, headers=headers or None)
        while listener and len(replies) < len(bodies):
            message = await listener.next_msg(timeout=PATIENCE)
            replies.append((message.data, dict(message.headers or {})))
        await client.drain()
        return replies

    return asyncio.run(talk())


def over_amqp(url, queue, bodies, headers, reply_to):
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    if reply_to:
        channel.queue_declare(reply_to, durable=True)
    channel.confirm_delivery()
    for body in bodies:
        properties = pika.BasicProperties(headers=headers or None, delivery_mode=2)
        channel.basic_publish("ebb", queue, body, properties, mandatory=True)
    if reply_to:
        n_left = len(bodies)
        for method, properties, body in channel.consume(reply_to, inactivity_timeout=PATIENCE):
            if method is None:
                sys.exit("no reply came")
            channel.basic_ack(method.delivery_tag)
            told = dict(properties.headers or {})
            told["content-type"] = properties.content_type
            told["correlation-id"] = properties.correlation_id
            yield body, told
            n_left -= 1
            if n_left == 0:
                break
        channel.cancel()
    connection.close()


def over_redis(url, queue, bodies, headers, reply_to):
    import redis

    client = redis.Redis.from_url(url)
    for body in bodies:
        client.xadd(f"ebb:{{{queue}}}", {"body": body, **headers})
    last, n_left = "0", len(bodies) if reply_to else 0
    while n_left:
        told = client.xread({reply_to: last}, block=int(PATIENCE * 1000))
        if not told:
            sys.exit("no reply came")
        for last, fields in told[0][1]:
            fields = {name.decode(): value for name, value in fields.items()}
            body = fields.pop("body")
            yield body, {name: value.decode() for name, value in fields.items()}
            n_left -= 1


if __name__ == "__main__":
    main()
