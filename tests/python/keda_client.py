"""Speaks KEDA's protocol to a scaler, with nothing of ours in between.

    keda_client.py ADDRESS PROTO KEY=VALUE...

The stubs are generated from PROTO (KEDA's own file) when this starts; a second client is made from
nothing but the scaler's answers to gRPC reflection. Calls come in KEDA's order, and each answer of
the first client must be the answer of the second. Prints one JSON object.
"""

import json
import pathlib
import sys
import tempfile

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

SERVICE = "externalscaler.ExternalScaler"
TIMEOUT = 30


def generated(proto, channel):
    """The messages and a stub, generated from the file."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["protoc", f"-I{proto.parent}", f"--python_out={folder}", f"--grpc_python_out={folder}", str(proto)]
        if protoc.main(arguments) != 0:
            sys.exit(f"protoc cannot read {proto}")
        sys.path.insert(0, folder)
        import externalscaler_pb2
        import externalscaler_pb2_grpc
    return externalscaler_pb2, externalscaler_pb2_grpc.ExternalScalerStub(channel)


class Reflected:
    """A client that knows only what the server tells about itself."""

    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def call(self, service, name, request):
        """Calls a method with a request given as JSON, and returns the answer as JSON."""
        method = self.pool.FindServiceByName(service).FindMethodByName(name)
        ask = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)
        connect = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        remote = connect(
            f"/{service}/{name}",
            request_serializer=ask.SerializeToString,
            response_deserializer=answer.FromString,
        )
        answered = remote(json_format.ParseDict(request, ask()), timeout=TIMEOUT)
        if not method.server_streaming:
            return as_json(answered)
        first = next(answered)
        answered.cancel()
        return as_json(first)


def as_json(message):
    return json_format.MessageToDict(message, always_print_fields_with_no_presence=True)


def first_of(stream):
    message = next(stream)
    stream.cancel()
    return message


def keda_round(pb, stub, ref):
    """GetMetricSpec, GetMetrics, IsActive: one look of KEDA's polling loop; then both streams."""
    spec = stub.GetMetricSpec(ref, timeout=TIMEOUT)
    name = spec.metricSpecs[0].metricName
    ask = pb.GetMetricsRequest(scaledObjectRef=ref, metricName=name)
    return {
        "GetMetricSpec": as_json(spec),
        "GetMetrics": as_json(stub.GetMetrics(ask, timeout=TIMEOUT)),
        "IsActive": as_json(stub.IsActive(ref, timeout=TIMEOUT)),
        "StreamMetricSpec": as_json(first_of(stub.StreamMetricSpec(ref, timeout=TIMEOUT))),
    }


def refusal(stub, pb, metadata):
    """The status code with which the scaler refuses this metadata."""
    ref = pb.ScaledObjectRef(name="wrong", namespace="default", scalerMetadata=metadata)
    try:
        stub.GetMetricSpec(ref, timeout=TIMEOUT)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def main():
    address, proto = sys.argv[1], pathlib.Path(sys.argv[2])
    metadata = dict(pair.split("=", 1) for pair in sys.argv[3:])
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=TIMEOUT)
        pb, stub = generated(proto, channel)
        ref = pb.ScaledObjectRef(name="pool", namespace="default", scalerMetadata=metadata)
        answers = keda_round(pb, stub, ref)
        active = answers["IsActive"]["result"]
        if active:
            answers["StreamIsActive"] = as_json(first_of(stub.StreamIsActive(ref, timeout=TIMEOUT)))

        reflected = Reflected(channel)
        request = json_format.MessageToDict(ref)
        name = answers["GetMetricSpec"]["metricSpecs"][0]["metricName"]
        metrics = {"scaledObjectRef": request, "metricName": name}
        differ = []
        for method, answer in answers.items():
            again = reflected.call(SERVICE, method, metrics if method == "GetMetrics" else request)
            if again != answer:
                differ.append({"method": method, "generated": answer, "reflected": again})
        answers["differ"] = differ
        answers["services"] = sorted(reflected.database.get_services())
        answers["health"] = reflected.call("grpc.health.v1.Health", "Check", {"service": SERVICE})["status"]
        answers["refusal"] = refusal(stub, pb, {**metadata, "jobsPerReplica": "0"})
        print(json.dumps(answers))


if __name__ == "__main__":
    main()
