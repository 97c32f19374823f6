"""Writes tests/schemas: which fields the objects in deploy/ may have, as plain lines.

Reads what the projects publish: Kubernetes' definitions (OpenAPI as JSON) and the
CustomResourceDefinitions of the others (YAML). Only names, types, whether a field must be there,
and the words it takes are kept, and only of the kinds listed here.

    make_schemas.py OUT.txt --title "Kubernetes 1.36" --kubernetes DEFINITIONS.json
    make_schemas.py OUT.txt --title "KEDA 2.20" --crd FILE.yaml [FILE.yaml ...]

A line without indentation names a type, the lines below it its fields: `name TYPE`, `name! TYPE`
when it must be there. A TYPE is string, integer, number, boolean, quantity, intstr, any, another
type, [TYPE] for a list, {TYPE} for a map, or `one|two` for words. `group/version Kind = TYPE` says
where an object begins, and `...` that a type may have more fields than are told.
"""

import argparse
import json

KINDS = {
    "v1": [
        "ConfigMap", "LimitRange", "Namespace", "PersistentVolumeClaim", "Pod", "ResourceQuota",
        "Secret", "Service", "ServiceAccount",
    ],
    "apps/v1": ["DaemonSet", "Deployment", "StatefulSet"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "batch/v1": ["CronJob", "Job"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "policy/v1": ["PodDisruptionBudget"],
    "rbac.authorization.k8s.io/v1": ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"],
    "scheduling.k8s.io/v1": ["PriorityClass"],
    "storage.k8s.io/v1": ["StorageClass"],
}
CUSTOM = {
    "keda.sh/v1alpha1": [
        "ClusterTriggerAuthentication", "ScaledJob", "ScaledObject", "TriggerAuthentication",
    ],
    "cert-manager.io/v1": ["Certificate", "ClusterIssuer", "Issuer"],
    "extensions.agents.x-k8s.io/v1beta1": ["SandboxTemplate", "SandboxWarmPool"],
    "external-secrets.io/v1": ["ExternalSecret"],
    "monitoring.coreos.com/v1": ["PodMonitor", "PrometheusRule", "ServiceMonitor"],
    "networking.istio.io/v1": ["DestinationRule", "Gateway", "ServiceEntry", "VirtualService"],
    "security.istio.io/v1": ["AuthorizationPolicy", "PeerAuthentication"],
    "telemetry.istio.io/v1": ["Telemetry"],
}
# Parts that nothing here uses and that are longer than all the rest.
LEFT_OUT = {"Issuer": {"acme", "vault", "venafi"}, "ClusterIssuer": {"acme", "vault", "venafi"}}
# An object that is checked by Kubernetes' own type, wherever a CRD repeats it.
CORE = {
    "PodSpec": {"containers", "nodeSelector", "tolerations", "volumes"},
    "JobSpec": {"backoffLimit", "completions", "parallelism", "template"},
    "HorizontalPodAutoscalerBehavior": {"scaleDown", "scaleUp"},
    "PersistentVolumeClaimSpec": {"accessModes", "storageClassName", "volumeMode"},
}
# Kubernetes publishes the words of its fields as prose; these are the ones that manifests get wrong.
WORDS = {
    "Container.imagePullPolicy": "Always|IfNotPresent|Never",
    "ContainerPort.protocol": "SCTP|TCP|UDP",
    "DeploymentStrategy.type": "Recreate|RollingUpdate",
    "HPAScalingPolicy.type": "Percent|Pods",
    "HPAScalingRules.selectPolicy": "Disabled|Max|Min",
    "LabelSelectorRequirement.operator": "DoesNotExist|Exists|In|NotIn",
    "LimitRangeItem.type": "Container|PersistentVolumeClaim|Pod",
    "NetworkPolicyPort.protocol": "SCTP|TCP|UDP",
    "NetworkPolicySpec.policyTypes": "[Egress|Ingress]",
    "NodeSelectorRequirement.operator": "DoesNotExist|Exists|Gt|In|Lt|NotIn",
    "PersistentVolumeClaimSpec.accessModes": "[ReadOnlyMany|ReadWriteMany|ReadWriteOnce|ReadWriteOncePod]",
    "PersistentVolumeClaimSpec.volumeMode": "Block|Filesystem",
    "PodDisruptionBudgetSpec.unhealthyPodEvictionPolicy": "AlwaysAllow|IfHealthyBudget",
    "PodSecurityContext.fsGroupChangePolicy": "Always|OnRootMismatch",
    "PodSpec.dnsPolicy": "ClusterFirst|ClusterFirstWithHostNet|Default|None",
    "PodSpec.restartPolicy": "Always|Never|OnFailure",
    "PriorityClass.preemptionPolicy": "Never|PreemptLowerPriority",
    "SeccompProfile.type": "Localhost|RuntimeDefault|Unconfined",
    "ServicePort.protocol": "SCTP|TCP|UDP",
    "ServiceSpec.type": "ClusterIP|ExternalName|LoadBalancer|NodePort",
    "StatefulSetSpec.podManagementPolicy": "OrderedReady|Parallel",
    "Toleration.effect": "NoExecute|NoSchedule|PreferNoSchedule",
    "Toleration.operator": "Equal|Exists|Gt|Lt",
    "TopologySpreadConstraint.whenUnsatisfiable": "DoNotSchedule|ScheduleAnyway",
}


class Types:
    """Types by name, each a list of lines."""

    def __init__(self):
        self.types, self.roots, self.same = {}, [], {}

    def add(self, name, lines):
        """The name of a type with these fields: an older one, where there is one."""
        key = tuple(lines)
        if key in self.same:
            return self.same[key]
        self.types[name] = lines
        self.same[key] = name
        return name

    def write(self, path, title):
        with open(path, "w", encoding="utf-8") as out:
            print(f"# {title}; written by tests/python/make_schemas.py", file=out)
            for line in sorted(self.roots):
                print(line, file=out)
            for name in sorted(self.types):
                print(f"\n{name}", file=out)
                for line in self.types[name]:
                    print(f"  {line}", file=out)


def words(schema):
    """The words that a field takes, where all of them are plain."""
    found = [word for word in schema.get("enum", []) if word is not None]
    plain = found and all(isinstance(word, str) and word.strip("-._/").replace(
        "-", "").replace(".", "").replace("_", "").replace("/", "").isalnum() for word in found)
    return "|".join(sorted(set(found))) if plain and 1 < len(found) < 30 else None


def scalar(schema):
    kind = schema.get("type")
    kinds = [one for one in kind if one != "null"] if isinstance(kind, list) else [kind]
    if schema.get("x-kubernetes-int-or-string") or set(kinds) == {"string", "integer"}:
        return "intstr"
    if set(kinds) == {"string", "number"}:
        return "quantity"
    if len(kinds) == 1 and kinds[0] in ("string", "integer", "number", "boolean"):
        return words(schema) or kinds[0]
    return "any"


class Kubernetes(Types):
    """Kubernetes' definitions, with references between them."""

    def __init__(self, path):
        super().__init__()
        with open(path, encoding="utf-8") as file:
            page = json.load(file)
        self.defs = page.get("$defs") or page["definitions"]
        for name, schema in sorted(self.defs.items()):
            for kind in schema.get("x-kubernetes-group-version-kind", []):
                version = "/".join(part for part in (kind["group"], kind["version"]) if part)
                if kind["kind"] in KINDS.get(version, []):
                    self.roots.append(f"{version} {kind['kind']} = {self.named(name)}")

    def named(self, name):
        schema, short = self.defs[name], name.rsplit(".", 1)[-1]
        if short == "Quantity":
            return "quantity"
        if short == "IntOrString":
            return "intstr"
        if "properties" not in schema:
            return "any" if schema.get("type", "object") in ("object", ["object", "null"]) \
                else scalar(schema)
        if short in self.types:
            return short
        self.types[short] = []
        needed = set(schema.get("required", []))
        self.types[short] = [
            f"{field}{'!' if field in needed else ''} "
            + WORDS.get(f"{short}.{field}", self.of(part))
            for field, part in sorted(schema["properties"].items()) if field != "status"
        ]
        return short

    def of(self, schema):
        if "$ref" in schema:
            return self.named(schema["$ref"].rsplit("/", 1)[-1])
        if "oneOf" in schema or "anyOf" in schema:
            both = [
                one for one in schema.get("oneOf", schema.get("anyOf")) if one.get("type") != "null"
            ]
            return self.of(both[0]) if len(both) == 1 else "quantity"
        kind = schema.get("type")
        if kind in ("array", ["array", "null"]):
            return f"[{self.of(schema.get('items', {}))}]"
        if kind in ("object", ["object", "null"]):
            inner = schema.get("additionalProperties")
            return f"{{{self.of(inner)}}}" if isinstance(inner, dict) else "any"
        return scalar(schema)


class Custom(Types):
    """CustomResourceDefinitions, whose objects lie within each other."""

    def __init__(self, paths):
        super().__init__()
        import yaml

        for path in paths:
            with open(path, encoding="utf-8") as file:
                for page in yaml.safe_load_all(file):
                    if page and page.get("kind") == "CustomResourceDefinition":
                        self.definition(page["spec"])

    def definition(self, spec):
        kind = spec["names"]["kind"]
        for version in spec["versions"]:
            name = f"{spec['group']}/{version['name']}"
            if kind in CUSTOM.get(name, []):
                schema = version["schema"]["openAPIV3Schema"]
                self.left_out = LEFT_OUT.get(kind, set())
                fields = {
                    field: part for field, part in schema["properties"].items()
                    if field not in ("apiVersion", "kind", "metadata", "status")
                }
                lines = ["apiVersion! string", "kind! string", "metadata! ObjectMeta"]
                lines += self.fields(kind, fields, set(schema.get("required", [])) | {"spec"})
                self.roots.append(f"{name} {kind} = {self.add(kind, lines)}")

    def fields(self, name, properties, needed):
        return [
            f"{field}{'!' if field in needed else ''} {self.of(f'{name}.{field}', part)}"
            for field, part in sorted(properties.items()) if field not in self.left_out
        ]

    def of(self, name, schema):
        kind = schema.get("type")
        if kind == "array":
            return f"[{self.of(name, schema.get('items', {}))}]"
        if kind != "object":
            return scalar(schema)
        properties = schema.get("properties")
        if not properties:
            inner = schema.get("additionalProperties")
            return f"{{{self.of(name, inner)}}}" if isinstance(inner, dict) else "any"
        for core, marks in CORE.items():
            if marks <= set(properties):
                return core
        lines = self.fields(name, properties, set(schema.get("required", [])))
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            lines.append("...")
        return self.add(name, lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out")
    parser.add_argument("--title", required=True)
    parser.add_argument("--kubernetes", metavar="JSON")
    parser.add_argument("--crd", metavar="YAML", nargs="+", default=[])
    args = parser.parse_args()
    types = Kubernetes(args.kubernetes) if args.kubernetes else Custom(args.crd)
    if not types.roots:
        parser.error("none of the kinds that are listed was found")
    types.write(args.out, args.title)


if __name__ == "__main__":
    main()
