"""deploy/: everything that can be checked without a container engine or a cluster. Each rule is tested on a broken
copy."""

from __future__ import annotations

import copy
import fnmatch
import functools
import inspect
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from dagster._daemon import cli as dagster_daemon

from orchestration import __version__
from orchestration.cli.commands import app
from orchestration.ingest.stream.run import entry_of
from orchestration.quality.alerts import read_rules

PROJECT = Path(__file__).resolve().parent.parent
DEPLOY = PROJECT / "deploy"
OURS = f"finegrain:{__version__}"
#: The Kubernetes whose API schemas the manifests must fit.
VERSIONS = ("1.31", "1.37")
SECRET = "finegrain"
WORKLOADS = ("Deployment", "StatefulSet")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

#: All allowed connections, between pods and from and to the outside.
FLOWS = {
    ("loader", "postgres", 5432),
    ("dagster", "postgres", 5432),
    ("dagster", "loader", 9109),
    ("dagster", "redis", 6379),
}
COME_IN = {("ingress-nginx", "dagster", 3000), ("monitoring", "loader", 9109), ("monitoring", "dagster", 9109)}
GO_OUT: dict[str, set[Any]] = {
    "loader": {443, 9092, 9093, ("kube-system", 53)},
    "dagster": {443, 465, 587, ("kube-system", 53)},
    "postgres": set(),
    "redis": set(),
}


@dataclass
class Base:
    """The kustomize base: documents by file, and the content of the kustomization."""

    files: dict[str, list[dict[str, Any]]]
    kustomization: dict[str, Any]

    @classmethod
    def read(cls) -> Base:
        files = {
            path.name: [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]
            for path in sorted((DEPLOY / "kubernetes").iterdir())
        }
        [kustomization] = files.pop("kustomization.yaml")
        return cls(files, kustomization)

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [document for file in self.files.values() for document in file]

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [document for document in self.documents if document["kind"] in kinds]

    def get(self, kind: str, name: str) -> dict[str, Any]:
        [found] = [document for document in self.of(kind) if document["metadata"]["name"] == name]
        return found

    def names(self, kind: str) -> set[str]:
        return {document["metadata"]["name"] for document in self.of(kind)}

    def pod(self, name: str) -> dict[str, Any]:
        """The pod of a workload."""
        [found] = [each for each in self.of(*WORKLOADS) if each["metadata"]["name"] == name]
        spec: dict[str, Any] = found["spec"]["template"]["spec"]
        return spec

    def labels(self) -> dict[str, dict[str, str]]:
        """Of each workload's pods."""
        return {
            each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"] for each in self.of(*WORKLOADS)
        }

    def ports(self, name: str) -> dict[str, int]:
        """What the pods of a workload listen on, by name."""
        return {
            port["name"]: port["containerPort"]
            for container in self.pod(name)["containers"]
            for port in container.get("ports", [])
        }

    def containers(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """(name for messages, pod, container)."""
        for name in self.labels():
            pod = self.pod(name)
            for container in [*pod["containers"], *pod.get("initContainers", [])]:
                yield f"{name}/{container['name']}", pod, container

    def variables_of(self, container: dict[str, Any]) -> set[str]:
        """The variables that a container gets."""
        maps = [each["configMapRef"]["name"] for each in container.get("envFrom", [])]
        return {each["name"] for each in container.get("env", [])} | {
            key for name in maps if name in self.names("ConfigMap") for key in self.get("ConfigMap", name)["data"]
        }


def is_fixed(image: str) -> bool:
    """Whether an image has a tag of a certain version, instead of the newest one."""
    return bool(re.fullmatch(r"[a-z0-9./-]+:v?\d[\w.-]*", image))


def complaint_of_command(arguments: list[str]) -> str | None:
    """The error of finegrain's own command line for these arguments, if it does not accept them. Nothing is run."""
    command = typer.main.get_command(app)
    try:
        context = command.make_context("finegrain", list(arguments))
        while hasattr(command, "resolve_command"):
            name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            context = command.make_context(name, rest, parent=context)
    except Exception as error:  # errors of the command line itself, and those that its callbacks raise
        return error.format_message() if hasattr(error, "format_message") else repr(error)
    return None


@functools.cache
def known() -> set[str]:
    """The variables that the code, its documentation or Dagster's daemon mention, and those that the mappings read."""
    files = [path for path in (PROJECT / "orchestration").rglob("*") if path.suffix in (".py", ".yml", ".yaml")]
    files += [*(PROJECT / "docs").rglob("*.md"), PROJECT / "profiles.yml", PROJECT / "README.md"]
    texts = [path.read_text("utf-8") for path in files] + [inspect.getsource(dagster_daemon)]
    mappings = [DEPLOY / "shop.yml", DEPLOY / "kubernetes" / "configmap.yaml"]
    read = [name for path in mappings for name in re.findall(r"\$\{([A-Z_]+)\}", path.read_text("utf-8"))]
    return set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b|\bPGPASSWORD\b", "\n".join(texts))) | set(read)


def documented_keys() -> set[str]:
    """The keys of the Secret that README.md tells the reader to create."""
    text = (DEPLOY / "README.md").read_text("utf-8")
    assert f"kubectl create secret generic {SECRET} " in text
    table = text.partition("| key | what it is |")[2].partition("\n\n")[0]
    return {
        key
        for line in table.splitlines()
        for key in re.findall(r"`([a-z-]+)`", line.split("|")[1] if "|" in line else "")
    }


# The rules of the manifests. Each yields its errors as text.


def fits_the_schemas(base: Base) -> Iterator[str]:
    for document in base.documents:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{document['kind']} {document['metadata']['name']} ({version}): {error.message}"
            except kubernetes_validate.SchemaNotFoundError as error:
                yield error.message


def quantities_are_quantities(base: Base) -> Iterator[str]:
    form = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
    for where, _, container in base.containers():
        for side in ("requests", "limits"):
            for what, amount in container.get("resources", {}).get(side, {}).items():
                if not form.fullmatch(str(amount)):
                    yield f"{where}: {what} {amount} is no quantity"


def is_not_root(base: Base) -> Iterator[str]:
    for where, pod, container in base.containers():
        said = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        if said.get("runAsNonRoot") is not True:
            yield f"{where}: runAsNonRoot is not true"
        if not isinstance(said.get("runAsUser"), int) or said["runAsUser"] == 0:
            yield f"{where}: runAsUser is not a number above 0"


def is_locked_down(base: Base) -> Iterator[str]:
    for where, pod, container in base.containers():
        said = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        if said.get("readOnlyRootFilesystem") is not True:
            yield f"{where}: the root file system can be written"
        if said.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: allowPrivilegeEscalation is not false"
        if said.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where}: it keeps capabilities"
        if said.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{where}: seccompProfile is not RuntimeDefault"
        if said.get("privileged") or any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{where}: it shares what is the host's"
        if any("hostPath" in volume for volume in pod.get("volumes", [])):
            yield f"{where}: it mounts a folder of the host"


def is_probed(base: Base) -> Iterator[str]:
    for where, _, container in base.containers():
        named = {port["name"] for port in container.get("ports", [])}
        for probe in PROBES:
            if probe not in container:
                yield f"{where}: it has no {probe}"
            elif (port := container[probe].get("httpGet", {}).get("port")) is not None and port not in named:
                yield f"{where}: {probe} asks port {port}, which the container does not name"


def is_limited(base: Base) -> Iterator[str]:
    for where, _, container in base.containers():
        for side in ("requests", "limits"):
            for what in ("cpu", "memory"):
                if what not in container.get("resources", {}).get(side, {}):
                    yield f"{where}: no {side} of {what}"


_SECRETIVE = re.compile("PASSWORD|PASSWD|SECRET|TOKEN|WEBHOOK|ACCESS_KEY|AUTH$|STORAGE$|USERNAME$")
_WITH_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def secrets_are_references(base: Base) -> Iterator[str]:
    keys = documented_keys()
    for document in base.of("Secret"):
        yield f"the Secret {document['metadata']['name']} is in a file"
    for document in base.of("ConfigMap"):
        for name, value in document["data"].items():
            if _SECRETIVE.search(name) or _WITH_PASSWORD.search(value):
                yield f"ConfigMap {document['metadata']['name']}: {name} is a secret"
            if re.search(r"(?im)^\s*[\w.]*(password|secret)[\w.]*:\s*(?![\"']?\$\{)\S", value):
                yield f"ConfigMap {document['metadata']['name']}: {name} holds a password"
    for where, _, container in base.containers():
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference is None and (
                _SECRETIVE.search(variable["name"]) or _WITH_PASSWORD.search(variable.get("value", ""))
            ):
                yield f"{where}: {variable['name']} is a secret, and no reference to one"
            if reference is not None and (reference["name"] != SECRET or reference["key"] not in keys):
                yield f"{where}: README.md does not say how to make {reference['name']}'s {reference['key']}"
        words = [*container.get("command", []), *container.get("args", [])]
        for option, value in itertools.pairwise(words):
            if re.search("pass|secret|token", option) and not re.fullmatch(r"\$\([A-Z_]+\)", value):
                yield f"{where}: {option} has a secret as its value"
        for read in re.findall(r"\$\(([A-Z_]+)\)", " ".join(words)):
            if read not in base.variables_of(container):
                yield f"{where}: it has no {read}"


def images_are_fixed(base: Base) -> Iterator[str]:
    for where, _, container in base.containers():
        if not is_fixed(container["image"]):
            yield f"{where}: {container['image']} is no fixed version"
        if container["image"].startswith("finegrain") and container["image"] != OURS:
            yield f"{where}: {container['image']} is not {OURS}"
    for image in base.kustomization.get("images", []):
        if not is_fixed(f"{image['name']}:{image.get('newTag', '')}"):
            yield f"kustomization.yaml: {image['name']} has no fixed version"


def has_no_token(base: Base) -> Iterator[str]:
    for account in base.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount {account['metadata']['name']}: its token is mounted"
    for name in base.labels():
        if base.pod(name).get("automountServiceAccountToken") is not False:
            yield f"{name}: its token is mounted"
        if base.pod(name).get("serviceAccountName") not in base.names("ServiceAccount"):
            yield f"{name}: it has no ServiceAccount"


def is_told_of_no_services(base: Base) -> Iterator[str]:
    """For a Service named dagster-webserver, Kubernetes would set DAGSTER_WEBSERVER_PORT, which Dagster reads as a
    setting."""
    for name in base.labels():
        if base.pod(name).get("enableServiceLinks") is not False:
            yield f"{name}: variables of Services are put into it"


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Like Kubernetes."""
    for each in selector.get("matchExpressions", []):
        value, wanted = labels.get(each["key"]), each.get("values", [])
        holds = {
            "In": value in wanted,
            "NotIn": value not in wanted,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[each["operator"]]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def selectors_find_pods(base: Base) -> Iterator[str]:
    pods = base.labels()
    for document in base.documents:
        kind, name, spec = document["kind"], document["metadata"]["name"], document.get("spec", {})
        if kind in WORKLOADS and not selects(spec["selector"], pods[name]):
            yield f"{kind} {name}: its selector does not match its own pods"
        if kind == "Service":
            found = [pod for pod, labels in pods.items() if selects({"matchLabels": spec["selector"]}, labels)]
            if not found:
                yield f"Service {name}: its selector matches no pod"
            for port in spec["ports"]:
                if any(port["targetPort"] not in base.ports(pod) for pod in found):
                    yield f"Service {name}: no container has the port {port['targetPort']}"
        if kind in ("PodDisruptionBudget", "NetworkPolicy"):
            selector = spec["selector" if kind == "PodDisruptionBudget" else "podSelector"]
            if not any(selects(selector, labels) for labels in pods.values()):
                yield f"{kind} {name}: its selector matches no pod"
        if kind == "NetworkPolicy":
            for peer in [peer for side, key in _SIDES for rule in spec.get(side, []) for peer in rule.get(key, [])]:
                inside = "podSelector" in peer and "namespaceSelector" not in peer
                if inside and not any(selects(peer["podSelector"], labels) for labels in pods.values()):
                    yield f"NetworkPolicy {name}: a peer's selector matches no pod"
                # With several names in In, a correct one would hide a wrong one.
                for each in peer.get("podSelector", {}).get("matchExpressions", []) if inside else []:
                    for value in set(each.get("values", [])) - {labels.get(each["key"]) for labels in pods.values()}:
                        yield f"NetworkPolicy {name}: there is no pod {value}"


_SIDES = (("ingress", "from"), ("egress", "to"))


def _rules_of(base: Base, pod: str, side: str) -> list[dict[str, Any]] | None:
    """The rules of one direction that apply to a pod; None where no policy does, and everything is allowed."""
    labels = base.labels()[pod]
    policies = [
        policy["spec"]
        for policy in base.of("NetworkPolicy")
        if selects(policy["spec"]["podSelector"], labels) and side.title() in policy["spec"]["policyTypes"]
    ]
    return [rule for policy in policies for rule in policy.get(side, [])] if policies else None


def _allows(base: Base, pod: str, side: str, other: str, port: int, listens: str) -> bool:
    """Whether the rules of one direction for `pod` let it talk to the pod `other` on a port of `listens`."""
    rules = _rules_of(base, pod, side)
    if rules is None:
        return True
    key = dict(_SIDES)[side]
    for rule in rules:
        numbers = [base.ports(listens).get(each["port"], each["port"]) for each in rule.get("ports", [{"port": port}])]
        # An address may be a pod's, so a block of addresses counts as every pod.
        peers = any(
            "ipBlock" in peer
            or ("namespaceSelector" not in peer and selects(peer.get("podSelector", {}), base.labels()[other]))
            for peer in rule.get(key, [{"ipBlock": {}}])
        )
        if port in numbers and peers:
            return True
    return False


def only_who_must_can_reach(base: Base) -> Iterator[str]:
    pods = base.labels()
    flows = {
        (one, other, port)
        for one in pods
        for other in pods
        for port in base.ports(other).values()
        if one != other
        and _allows(base, one, "egress", other, port, other)
        and _allows(base, other, "ingress", one, port, other)
    }
    for one, other, port in sorted(flows ^ FLOWS):
        yield f"{one} can{'' if (one, other, port) in flows else 'not'} reach {other}:{port}"
    come: set[tuple[str, str, int]] = set()
    for pod in pods:
        out: set[Any] = set() if (rules := _rules_of(base, pod, "egress")) is not None else {"anything"}
        for rule in rules or []:
            ports = [each["port"] for each in rule.get("ports", [{"port": "any"}])]
            for peer in rule.get("to", [{"ipBlock": {}}]):
                space = (
                    peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name", "all")
                )
                if "namespaceSelector" in peer:
                    out |= {(space, port) for port in ports}
                elif "ipBlock" in peer:
                    out |= set(ports)
                    if "169.254.0.0/16" not in peer["ipBlock"].get("except", []):
                        yield f"{pod} can reach the node's own services"
        if out != GO_OUT[pod]:
            yield f"{pod} goes out to {sorted(map(str, out))}, and not to {sorted(map(str, GO_OUT[pod]))}"
        rules = _rules_of(base, pod, "ingress")
        for rule in [{}] if rules is None else rules:
            for peer in rule.get("from", [{"ipBlock": {}}]):
                space = (
                    peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name", "all")
                )
                if "namespaceSelector" in peer or "ipBlock" in peer:
                    ports = [
                        base.ports(pod).get(each["port"], each["port"]) for each in rule.get("ports", [{"port": 0}])
                    ]
                    come |= {(space, pod, port) for port in ports}
    for space, pod, port in sorted(come ^ COME_IN):
        yield f"from {space} one can{'' if (space, pod, port) in come else 'not'} come to {pod}:{port}"


def references_are_there(base: Base) -> Iterator[str]:
    for name in base.labels():
        pod = base.pod(name)
        [workload] = [each for each in base.of(*WORKLOADS) if each["metadata"]["name"] == name]
        volumes = {each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", [])}
        for volume in pod.get("volumes", []):
            volumes.add(volume["name"])
            if "configMap" in volume and volume["configMap"]["name"] not in base.names("ConfigMap"):
                yield f"{name}: there is no ConfigMap {volume['configMap']['name']}"
            if "secret" in volume and volume["secret"]["secretName"] != SECRET:
                yield f"{name}: there is no Secret {volume['secret']['secretName']}"
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in base.names("PersistentVolumeClaim"):
                yield f"{name}: there is no PersistentVolumeClaim {claim}"
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        for volume_name in sorted(mounted ^ volumes):
            yield f"{name}: the volume {volume_name} is {'mounted and not there' if volume_name in mounted else 'mounted nowhere'}"
        if workload["kind"] == "StatefulSet" and workload["spec"]["serviceName"] not in base.names("Service"):
            yield f"{name}: there is no Service {workload['spec']['serviceName']}"
        if not any(selects(each["spec"]["selector"], base.labels()[name]) for each in base.of("PodDisruptionBudget")):
            yield f"{name}: it has no PodDisruptionBudget"
        for container in pod["containers"]:
            for source in container.get("envFrom", []):
                if source["configMapRef"]["name"] not in base.names("ConfigMap"):
                    yield f"{name}: there is no ConfigMap {source['configMapRef']['name']}"
    for scaler in base.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        if target["name"] not in base.names(target["kind"]):
            yield f"HorizontalPodAutoscaler: there is no {target['kind']} {target['name']}"
        elif "replicas" in base.get(target["kind"], target["name"])["spec"]:
            yield f"{target['name']}: an apply would undo what the autoscaler did"
    seen = [(each["kind"], each["metadata"]["name"]) for each in base.documents]
    for kind, name in sorted({each for each in seen if seen.count(each) > 1}):
        yield f"there are two of {kind} {name}"


def kustomization_is_whole(base: Base) -> Iterator[str]:
    listed = base.kustomization["resources"]
    for name in sorted(set(listed) ^ set(base.files)):
        yield f"kustomization.yaml: {name} is {'not there' if name in listed else 'not listed'}"
    if base.kustomization.get("namespace") not in base.names("Namespace"):
        yield "kustomization.yaml: the namespace is not made"
    for document in base.documents:
        if document["metadata"].get("namespace", base.kustomization.get("namespace")) != base.kustomization.get(
            "namespace"
        ):
            yield f"{document['kind']} {document['metadata']['name']} is in another namespace"


def commands_are_commands(base: Base) -> Iterator[str]:
    for where, _, container in base.containers():
        if not container["image"].startswith("finegrain:"):
            continue
        arguments = container.get("args", [])
        if "command" in container:
            yield f"{where}: the image's own command is put aside"
        if (said := complaint_of_command(arguments)) is not None:
            yield f"{where}: finegrain {shlex.join(arguments)}: {said}"
        for probe in PROBES:
            command = container.get(probe, {}).get("exec", {}).get("command")
            if command and not is_installed(command):
                yield f"{where}: {probe}: there is no {shlex.join(command)}"


def is_installed(command: list[str]) -> bool:
    """Whether an image of this environment has a command other than finegrain's own."""
    if command[0] == "dagster-daemon":
        return command[1:] in [[name] for name in dagster_daemon.create_dagster_daemon_cli().commands]
    return command[0] == "python" or Path(sys.executable).with_name(command[0]).exists()


def settings_are_known(base: Base) -> Iterator[str]:
    for where, _, container in base.containers():
        if container["image"].startswith("finegrain:"):
            for name in sorted(base.variables_of(container) - known()):
                yield f"{where}: neither code nor documentation knows {name}"
            for name in sorted(base.variables_of(container) - example_names() - {"DAGSTER_DAEMON_HEARTBEAT_TOLERANCE"}):
                yield f"{where}: example.env does not tell of {name}"


def stops_and_starts_in_order(base: Base) -> Iterator[str]:
    if base.pod("loader").get("terminationGracePeriodSeconds", 30) < 60:
        yield "loader: it may be killed before its open batch has landed"
    dagster = base.get("Deployment", "dagster")["spec"]
    if dagster.get("replicas") != 1 or dagster.get("strategy") != {"type": "Recreate"}:
        yield "dagster: two of it may run at once"


def live_is_beside_the_builds(base: Base) -> Iterator[str]:
    """It reads the warehouse that the daemon's runs write, and both write to the online store."""
    daemon, live = (first(base, "dagster", name) for name in ("daemon", "live"))
    homes = [
        {mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/var/lib/finegrain"}
        for container in (daemon, live)
    ]
    if homes[0] != homes[1]:
        yield "live: its home is not that of the builds"
    if "--wait" not in live["args"]:
        yield "live: it ends while there is no build, so that its pod is not ready"
    for container in (daemon, live):
        for name in sorted(
            {"FINEGRAIN_ONLINE_STORE", "FINEGRAIN_ONLINE_STORE_PASSWORD"} - base.variables_of(container)
        ):
            yield f"{container['name']}: it has no {name}"


Rule = Callable[[Base], Iterator[str]]
RULES: list[Rule] = [
    fits_the_schemas, quantities_are_quantities, is_not_root, is_locked_down, is_probed, is_limited, secrets_are_references,
    images_are_fixed, has_no_token, is_told_of_no_services, selectors_find_pods, only_who_must_can_reach, references_are_there,
    kustomization_is_whole, commands_are_commands, settings_are_known, stops_and_starts_in_order, live_is_beside_the_builds,
]  # fmt: skip


@pytest.fixture(scope="session")
def base() -> Base:
    return Base.read()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_manifests(rule: Rule, base: Base) -> None:
    assert list(rule(base)) == []


def first(base: Base, name: str, container: str | None = None) -> dict[str, Any]:
    """A container of a workload's pod."""
    return next(each for each in base.pod(name)["containers"] if container in (None, each["name"]))


def policy(base: Base, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = base.get("NetworkPolicy", name)["spec"]
    return spec


def env(name: str, **said: Any) -> dict[str, Any]:
    return {"name": name, **said}


#: What each rule must refuse: the change, and a word of the error.
BROKEN: list[tuple[Rule, str, Callable[[Base], Any]]] = [
    (fits_the_schemas, "replica", lambda b: b.get("Deployment", "dagster")["spec"].update(replica=0)),
    (fits_the_schemas, "is not of type", lambda b: b.get("Service", "redis")["spec"]["ports"][0].update(port="6379")),
    (fits_the_schemas, "required", lambda b: b.get("StatefulSet", "redis")["spec"].pop("selector")),
    (fits_the_schemas, "Couldn't find schema", lambda b: b.get("Deployment", "dagster").update(apiVersion="extensions/v1beta1")),
    (quantities_are_quantities, "1GB", lambda b: first(b, "loader")["resources"]["limits"].update(memory="1GB")),
    (is_not_root, "runAsNonRoot", lambda b: b.pod("loader")["securityContext"].pop("runAsNonRoot")),
    (is_not_root, "runAsUser", lambda b: b.pod("redis")["securityContext"].update(runAsUser=0)),
    (is_not_root, "runAsUser", lambda b: first(b, "dagster", "daemon")["securityContext"].update(runAsUser=0)),
    (is_locked_down, "root file system", lambda b: first(b, "postgres")["securityContext"].pop("readOnlyRootFilesystem")),
    (is_locked_down, "Escalation", lambda b: first(b, "dagster", "live")["securityContext"].update(allowPrivilegeEscalation=True)),
    (is_locked_down, "capabilities", lambda b: first(b, "loader")["securityContext"].update(capabilities={"add": ["NET_ADMIN"], "drop": ["ALL"]})),
    (is_locked_down, "seccompProfile", lambda b: b.pod("loader")["securityContext"].pop("seccompProfile")),
    (is_locked_down, "host", lambda b: b.pod("loader").update(hostNetwork=True)),
    (is_locked_down, "host", lambda b: b.pod("redis")["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    (is_probed, "livenessProbe", lambda b: first(b, "dagster", "daemon").pop("livenessProbe")),
    (is_probed, "readinessProbe", lambda b: first(b, "dagster", "live").pop("readinessProbe")),
    (is_probed, "startupProbe", lambda b: first(b, "postgres").pop("startupProbe")),
    (is_probed, "does not name", lambda b: first(b, "loader")["readinessProbe"]["httpGet"].update(port="http")),
    (is_limited, "limits of memory", lambda b: first(b, "redis")["resources"]["limits"].pop("memory")),
    (is_limited, "requests of cpu", lambda b: first(b, "dagster", "webserver").pop("resources")),
    (secrets_are_references, "PGPASSWORD", lambda b: first(b, "loader")["env"].append(env("PGPASSWORD", value="x"))),
    (secrets_are_references, "DATABASE", lambda b: first(b, "loader")["env"].append(env("DATABASE", value="postgresql://a:b@c/d"))),
    (secrets_are_references, "is a secret", lambda b: b.get("ConfigMap", "finegrain")["data"].update(AWS_SECRET_ACCESS_KEY="x")),
    (secrets_are_references, "is a secret", lambda b: b.get("ConfigMap", "finegrain")["data"].update(FINEGRAIN_S3_ENDPOINT="https://a:b@c")),
    (secrets_are_references, "holds a password", lambda b: b.get("ConfigMap", "finegrain-files")["data"].update({"shop.yml": "settings:\n  sasl.password: hunter2"})),
    (secrets_are_references, "in a file", lambda b: b.files["redis.yaml"].append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}})),
    (secrets_are_references, "README.md", lambda b: first(b, "redis")["env"][0]["valueFrom"]["secretKeyRef"].update(key="other")),
    (secrets_are_references, "README.md", lambda b: first(b, "redis")["env"][0]["valueFrom"]["secretKeyRef"].update(name="other")),
    (secrets_are_references, "--requirepass", lambda b: first(b, "redis").update(args=["redis-server", "--requirepass", "hunter2"])),
    (secrets_are_references, "it has no", lambda b: first(b, "redis").update(env=[])),
    (images_are_fixed, "no fixed version", lambda b: first(b, "redis").update(image="redis:latest")),
    (images_are_fixed, "no fixed version", lambda b: first(b, "postgres").update(image="postgres")),
    (images_are_fixed, f"is not {OURS}", lambda b: first(b, "loader").update(image="finegrain:0.0.1")),
    (images_are_fixed, "kustomization", lambda b: b.kustomization["images"][0].update(newTag="latest")),
    (has_no_token, "is mounted", lambda b: b.get("ServiceAccount", "loader").pop("automountServiceAccountToken")),
    (has_no_token, "is mounted", lambda b: b.pod("redis").update(automountServiceAccountToken=True)),
    (has_no_token, "no ServiceAccount", lambda b: b.pod("redis").update(serviceAccountName="default")),
    (is_told_of_no_services, "dagster", lambda b: b.pod("dagster").pop("enableServiceLinks")),
    (selectors_find_pods, "its own pods", lambda b: b.get("Deployment", "loader")["spec"]["selector"].update(matchLabels={"app.kubernetes.io/name": "alive"})),
    (selectors_find_pods, "Service redis", lambda b: b.get("Service", "redis")["spec"].update(selector={"app": "redis"})),
    (selectors_find_pods, "the port", lambda b: b.get("Service", "dagster")["spec"]["ports"][0].update(targetPort="https")),
    (selectors_find_pods, "PodDisruptionBudget", lambda b: b.get("PodDisruptionBudget", "redis")["spec"]["selector"].update(matchLabels={"app": "x"})),
    (selectors_find_pods, "NetworkPolicy loader", lambda b: policy(b, "loader").update(podSelector={"matchLabels": {"app": "x"}})),
    (selectors_find_pods, "a peer", lambda b: policy(b, "loader")["egress"][0]["to"][0].update(podSelector={"matchLabels": {"app": "x"}})),
    (selectors_find_pods, "no pod daemon", lambda b: policy(b, "postgres")["ingress"][0]["from"][0]["podSelector"]["matchExpressions"][0].update(values=["loader", "daemon"])),
    (only_who_must_can_reach, "loader can reach redis", lambda b: (policy(b, "redis").update(ingress=[{}]), policy(b, "loader")["egress"].append({"to": [{"podSelector": {}}]}))),
    (only_who_must_can_reach, "from monitoring one cannot come to dagster:9109", lambda b: policy(b, "dagster")["ingress"].pop()),
    (only_who_must_can_reach, "dagster cannot reach redis:6379", lambda b: policy(b, "dagster")["egress"].pop(2)),
    (only_who_must_can_reach, "cannot reach postgres", lambda b: policy(b, "postgres").update(ingress=[])),
    (only_who_must_can_reach, "redis goes out to ['anything']", lambda b: b.files["networkpolicies.yaml"].pop(0)),
    (only_who_must_can_reach, "goes out", lambda b: policy(b, "loader")["egress"][1]["ports"].append({"port": 22})),
    (only_who_must_can_reach, "node's own", lambda b: policy(b, "dagster")["egress"][3]["to"][0]["ipBlock"].pop("except")),
    (only_who_must_can_reach, "from all one can come to dagster", lambda b: policy(b, "dagster")["ingress"][0].pop("from")),
    (only_who_must_can_reach, "goes out", lambda b: policy(b, "names").update(egress=[])),
    (references_are_there, "ConfigMap", lambda b: b.files["configmap.yaml"].pop()),
    (references_are_there, "ConfigMap", lambda b: first(b, "loader")["envFrom"][0]["configMapRef"].update(name="x")),
    (references_are_there, "PersistentVolumeClaim", lambda b: b.files["volumes.yaml"].clear()),
    (references_are_there, "Secret other", lambda b: b.pod("dagster")["volumes"].append({"name": "x", "secret": {"secretName": "other"}})),
    (references_are_there, "mounted and not there", lambda b: b.pod("postgres")["volumes"].pop()),
    (references_are_there, "mounted nowhere", lambda b: first(b, "redis")["volumeMounts"].pop()),
    (references_are_there, "no Service", lambda b: b.get("StatefulSet", "redis")["spec"].update(serviceName="x")),
    (references_are_there, "autoscaler", lambda b: b.get("Deployment", "loader")["spec"].update(replicas=2)),
    (references_are_there, "HorizontalPodAutoscaler", lambda b: b.get("HorizontalPodAutoscaler", "loader")["spec"]["scaleTargetRef"].update(name="x")),
    (references_are_there, "no PodDisruptionBudget", lambda b: b.files["dagster.yaml"].pop()),
    (references_are_there, "two of", lambda b: b.files["volumes.yaml"].append(b.files["volumes.yaml"][0])),
    (kustomization_is_whole, "not listed", lambda b: b.kustomization["resources"].remove("loader.yaml")),
    (kustomization_is_whole, "not there", lambda b: b.kustomization["resources"].append("extra.yaml")),
    (kustomization_is_whole, "is not made", lambda b: b.kustomization.update(namespace="other")),
    (kustomization_is_whole, "another namespace", lambda b: b.get("Service", "redis")["metadata"].update(namespace="default")),
    (commands_are_commands, "No such option", lambda b: first(b, "loader")["args"].append("--metric-port")),
    (commands_are_commands, "valid integer", lambda b: first(b, "loader").update(args=["stream", "shop.yml", "--rows", "many"])),
    (commands_are_commands, "No such option", lambda b: first(b, "dagster", "live")["args"].append("--waits")),
    (commands_are_commands, "Missing argument", lambda b: first(b, "loader").update(args=["stream", "--json"])),
    (commands_are_commands, "is not one of", lambda b: first(b, "dagster", "daemon").update(args=["dagster", "deamon"])),
    (commands_are_commands, "No such command", lambda b: first(b, "dagster", "webserver").update(args=["webserver"])),
    (commands_are_commands, "put aside", lambda b: first(b, "loader").update(command=["finegrain"])),
    (commands_are_commands, "liveness-chek", lambda b: first(b, "dagster", "daemon")["livenessProbe"]["exec"].update(command=["dagster-daemon", "liveness-chek"])),
    (settings_are_known, "knows FINEGRAIN_LAKE_CATALOGUE", lambda b: b.get("ConfigMap", "finegrain")["data"].update(FINEGRAIN_LAKE_CATALOGUE="x")),
    (settings_are_known, "example.env", lambda b: first(b, "dagster", "live")["env"].append(env("FINEGRAIN_SERVICES", value="x"))),
    (stops_and_starts_in_order, "killed", lambda b: b.pod("loader").pop("terminationGracePeriodSeconds")),
    (stops_and_starts_in_order, "two", lambda b: b.get("Deployment", "dagster")["spec"].update(strategy={"type": "RollingUpdate"})),
    (stops_and_starts_in_order, "two", lambda b: b.get("Deployment", "dagster")["spec"].update(replicas=2)),
    (live_is_beside_the_builds, "home is not", lambda b: first(b, "dagster", "live").update(volumeMounts=[{"name": "tmp", "mountPath": "/tmp"}])),
    (live_is_beside_the_builds, "no build", lambda b: first(b, "dagster", "live")["args"].remove("--wait")),
    (live_is_beside_the_builds, "live: it has no FINEGRAIN_ONLINE_STORE_PASSWORD", lambda b: first(b, "dagster", "live")["env"].pop(4)),
    (live_is_beside_the_builds, "daemon: it has no FINEGRAIN_ONLINE_STORE", lambda b: b.get("ConfigMap", "finegrain")["data"].pop("FINEGRAIN_ONLINE_STORE")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "word", "change"), BROKEN, ids=[f"{rule.__name__}-{number}" for number, (rule, *_) in enumerate(BROKEN)]
)
def test_a_broken_manifest_is_refused(rule: Rule, word: str, change: Callable[[Base], Any], base: Base) -> None:
    broken = copy.deepcopy(base)
    change(broken)
    said = list(rule(broken))
    assert any(word in each for each in said), said


def test_every_rule_is_shown_to_refuse() -> None:
    assert {rule for rule, *_ in BROKEN} == set(RULES)
    assert {rule for rule, *_ in BROKEN_COMPOSE} == set(COMPOSE_RULES)
    assert {rule for rule, *_ in BROKEN_IMAGE} == set(IMAGE_RULES)


def test_the_files_of_the_configmap_are_read_by_finegrain(base: Base, tmp_path: Path) -> None:
    for name, text in base.get("ConfigMap", "finegrain-files")["data"].items():
        (tmp_path / name).write_text(text, "utf-8")
    for mapping in (tmp_path / "shop.yml", DEPLOY / "shop.yml"):
        source, table, entry, *_ = entry_of(mapping, None)
        assert (
            (source, table) == ("shop", "events") and entry.stream is not None and entry.stream.kafka == "shop.events"
        )
    read_rules(tmp_path / "alerts.yml")


def test_the_readme_says_what_was_run() -> None:
    text = (DEPLOY / "README.md").read_text("utf-8")
    assert f"Kubernetes {VERSIONS[0]} and {VERSIONS[1]}" in text
    assert re.search(r"building the image, running a container, `docker compose up` \| \*\*no\*\*", text)
    assert re.search(r"applying the manifests to a cluster \| \*\*no\*\*", text)


# compose.yaml.


def example_names() -> set[str]:
    """The variables of example.env, including those in comments."""
    return set(re.findall(r"(?m)^#?([A-Z][A-Z0-9_]*)=", (DEPLOY / "example.env").read_text("utf-8")))


#: The keys that a service of compose.yaml may have: otherwise a misspelt key would go unnoticed.
KEYS = {
    "build", "cap_drop", "command", "configs", "depends_on", "entrypoint", "env_file", "environment", "healthcheck", "image", "init",
    "logging", "mem_limit", "pids_limit", "ports", "read_only", "restart", "security_opt", "stop_grace_period", "tmpfs", "user", "volumes",
}  # fmt: skip

Compose = dict[str, Any]


def services_are_of_a_form(compose: Compose) -> Iterator[str]:
    for name in compose.keys() - {"name", "services", "volumes", "configs"}:
        if not name.startswith("x-"):
            yield f"{name} is no part of a compose file"
    for name, service in compose["services"].items():
        for key in sorted(service.keys() - KEYS):
            yield f"{name}: {key} is no setting of a service"
        if not is_fixed(service["image"]):
            yield f"{name}: {service['image']} is no fixed version"
        if service["image"].startswith("finegrain") and service["image"] != OURS:
            yield f"{name}: {service['image']} is not {OURS}"
        built = service.get("build")
        if built and not (DEPLOY / built["context"] / built["dockerfile"]).is_file():
            yield f"{name}: {built['dockerfile']} is not there"


def services_are_careful(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        if service.get("read_only") is not True:
            yield f"{name}: the root file system can be written"
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(service.get("user"))):
            yield f"{name}: user is not a number above 0"
        if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"{name}: it has or may get rights"
        if "mem_limit" not in service:
            yield f"{name}: its memory has no limit"
        if "restart" not in service:
            yield f"{name}: it does not say whether to restart it"
        if service.get("restart") != "no" and "test" not in service.get("healthcheck", {}):
            yield f"{name}: it has no health check"
        for port in service.get("ports", []):
            if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", str(port)):
                yield f"{name}: {port} is open to others"


def services_name_what_is_there(compose: Compose) -> Iterator[str]:
    services = compose["services"]
    used: set[str] = set()
    for name, service in services.items():
        for other, said in service.get("depends_on", {}).items():
            if other not in services:
                yield f"{name}: there is no service {other}"
            elif said["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                yield f"{name}: {other} has no health check"
            elif said["condition"] == "service_completed_successfully" and services[other]["restart"] != "no":
                yield f"{name}: {other} never completes"
        for volume in service.get("volumes", []):
            used.add(volume.split(":")[0])
        for source in service.get("configs", []):
            if source["source"] not in compose["configs"]:
                yield f"{name}: there is no config {source['source']}"
        for file in service.get("env_file", []):
            if file != ".env":
                yield f"{name}: {file} is not what README.md says to make"
        for address in re.findall(r"[@/](\w+):\d+", yaml.safe_dump(service.get("environment", {}))):
            if address not in services and address != "127":
                yield f"{name}: there is no service {address}"
    for volume in sorted(used ^ compose["volumes"].keys()):
        yield f"the volume {volume} is {'not declared' if volume in used else 'of no use'}"
    for config in compose["configs"].values():
        if "file" in config and not (DEPLOY / config["file"]).is_file():
            yield f"{config['file']} is not there"


def services_get_what_is_known(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        variables = service.get("environment", {})
        for key, value in variables.items():
            if _SECRETIVE.search(key) and not re.match(r"\$\{[A-Z_]+:\?", str(value)):
                yield f"{name}: {key} is a secret, and not from the environment's file"
            if service["image"].startswith("finegrain:") and key not in known():
                yield f"{name}: neither code nor documentation knows {key}"
        for read in re.findall(r"(?<!\$)\$\{([A-Z_]+)", yaml.safe_dump(service)):
            if read not in example_names():
                yield f"{name}: example.env does not tell of {read}"


def services_run_commands(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        if service["image"].startswith("finegrain:"):
            if "entrypoint" not in service and (said := complaint_of_command(service["command"])) is not None:
                yield f"{name}: finegrain {shlex.join(service['command'])}: {said}"
            kind, *command = service.get("healthcheck", {}).get("test", ["CMD", "python"])
            for words in (command, service.get("entrypoint", ["python"])):
                if kind != "CMD" or not is_installed(words):
                    yield f"{name}: there is no {shlex.join(words)}"
                elif words[1:2] == ["-c"]:
                    compile(words[2], name, "exec")


def services_share_the_home(compose: Compose) -> Iterator[str]:
    for name in ("webserver", "daemon", "live"):
        if "home:/var/lib/finegrain" not in compose["services"][name]["volumes"]:
            yield f"{name}: its home is not that of the builds"
    if "--wait" not in compose["services"]["live"]["command"]:
        yield "live: it ends while there is no build"


ComposeRule = Callable[[Compose], Iterator[str]]
COMPOSE_RULES: list[ComposeRule] = [
    services_are_of_a_form,
    services_are_careful,
    services_name_what_is_there,
    services_get_what_is_known,
    services_run_commands,
    services_share_the_home,
]


@pytest.fixture(scope="session")
def compose() -> Compose:
    read: Compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return read


@pytest.mark.parametrize("rule", COMPOSE_RULES, ids=lambda rule: rule.__name__)
def test_compose(rule: ComposeRule, compose: Compose) -> None:
    assert list(rule(compose)) == []


def service(compose: Compose, name: str) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"][name]
    return found


BROKEN_COMPOSE: list[tuple[ComposeRule, str, Callable[[Compose], Any]]] = [
    (services_are_of_a_form, "no setting", lambda c: service(c, "loader").update(mem_limt="1g")),
    (services_are_of_a_form, "no part", lambda c: c.update(service={})),
    (services_are_of_a_form, "no fixed version", lambda c: service(c, "redis").update(image="redis:latest")),
    (services_are_of_a_form, f"is not {OURS}", lambda c: service(c, "loader").update(image="finegrain:0.0.1")),
    (services_are_of_a_form, "not there", lambda c: service(c, "loader").update(build={"context": "..", "dockerfile": "Dockerfile"})),
    (services_are_careful, "can be written", lambda c: service(c, "kafka").pop("read_only")),
    (services_are_careful, "user", lambda c: service(c, "s3").pop("user")),
    (services_are_careful, "user", lambda c: service(c, "s3").update(user="0:0")),
    (services_are_careful, "rights", lambda c: service(c, "daemon").pop("cap_drop")),
    (services_are_careful, "memory", lambda c: service(c, "redis").pop("mem_limit")),
    (services_are_careful, "restart", lambda c: service(c, "redis").pop("restart")),
    (services_are_careful, "health", lambda c: service(c, "loader").pop("healthcheck")),
    (services_are_careful, "open to others", lambda c: service(c, "webserver").update(ports=["3000:3000"])),
    (services_name_what_is_there, "no service kafkas", lambda c: service(c, "topic").update(depends_on={"kafkas": {"condition": "service_healthy"}})),
    (services_name_what_is_there, "no health check", lambda c: service(c, "s3").pop("healthcheck")),
    (services_name_what_is_there, "never completes", lambda c: service(c, "topic").update(restart="always")),
    (services_name_what_is_there, "not declared", lambda c: c["volumes"].pop("redis")),
    (services_name_what_is_there, "of no use", lambda c: c["volumes"].update(more=None)),
    (services_name_what_is_there, "no config", lambda c: c["configs"].pop("databases")),
    (services_name_what_is_there, "shops.yml", lambda c: c["configs"]["shop"].update(file="shops.yml")),
    (services_name_what_is_there, "README.md", lambda c: service(c, "loader").update(env_file=["example.env"])),
    (services_name_what_is_there, "no service broker", lambda c: service(c, "kafka")["environment"].update(KAFKA_ADVERTISED_LISTENERS="PLAINTEXT://broker:9092")),
    (services_get_what_is_known, "is a secret", lambda c: service(c, "postgres")["environment"].update(POSTGRES_PASSWORD="hunter2")),
    (services_get_what_is_known, "knows", lambda c: service(c, "daemon")["environment"].update(DAGSTER_HEARTBEAT="1")),
    (services_get_what_is_known, "example.env", lambda c: service(c, "postgres")["environment"].update(POSTGRES_DB="${DATABASE}")),
    (services_run_commands, "No such option", lambda c: service(c, "loader")["command"].append("--metric-port")),
    (services_run_commands, "is not one of", lambda c: service(c, "daemon").update(command=["dagster", "deamon"])),
    (services_run_commands, "there is no", lambda c: service(c, "daemon").update(healthcheck={"test": ["CMD", "dagster-daemon", "alive"]})),
    (services_run_commands, "No such option", lambda c: service(c, "live")["command"].append("--waits")),
    (services_share_the_home, "not that of the builds", lambda c: service(c, "live").update(volumes=["kafka:/var/lib/finegrain"])),
    (services_share_the_home, "no build", lambda c: service(c, "live")["command"].remove("--wait")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "word", "change"),
    BROKEN_COMPOSE,
    ids=[f"{rule.__name__}-{number}" for number, (rule, *_) in enumerate(BROKEN_COMPOSE)],
)
def test_a_broken_compose_file_is_refused(
    rule: ComposeRule, word: str, change: Callable[[Compose], Any], compose: Compose
) -> None:
    # Copied as text: an anchor in YAML is one object in many places, but a change applies to one place.
    broken = yaml.safe_load(yaml.dump(compose, Dumper=NoAliases))
    change(broken)
    said = list(rule(broken))
    assert any(word in each for each in said), said


class NoAliases(yaml.SafeDumper):
    """Writes repeated objects out in full instead of as aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def test_the_example_environment(project: Path) -> None:
    text = (DEPLOY / "example.env").read_text("utf-8")
    values = dict(re.findall(r"(?m)^([A-Z][A-Z0-9_]*)=(.*)$", text))
    passwords = {"PGPASSWORD", "FINEGRAIN_DAGSTER_STORAGE", "FINEGRAIN_ONLINE_STORE_PASSWORD"}
    assert values.keys() >= {*passwords, "FINEGRAIN_LAKE_CATALOG", "FINEGRAIN_ONLINE_STORE"}
    assert example_names() <= known()
    for name, value in values.items():
        assert not _SECRETIVE.search(name) or "throwaway" in value, f"{name} might be somebody's"
        assert name == "FINEGRAIN_DAGSTER_STORAGE" or not _WITH_PASSWORD.search(value)
    assert f":{values['PGPASSWORD']}@" in values["FINEGRAIN_DAGSTER_STORAGE"]
    ignored = subprocess.run(["git", "check-ignore", "-q", "deploy/.env"], cwd=project, check=False)
    assert ignored.returncode == 0


# The Containerfile.


@dataclass(frozen=True)
class Step:
    """An instruction of a Containerfile, with continued lines as one."""

    word: str
    rest: str


def steps_of(text: str) -> list[Step]:
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = [line.strip() for line in re.sub(r"\\\n", " ", kept).splitlines() if line.strip()]
    return [Step(*line.split(maxsplit=1)) for line in lines]


def copied(steps: list[Step]) -> list[str]:
    """The sources that are copied from the project's folder, in order."""
    return [
        source
        for step in steps
        if step.word == "COPY" and not step.rest.startswith("--from=")
        for source in step.rest.split()[:-1]
    ]


def files_of(paths: list[str]) -> list[str]:
    """The project's files in these folders: committed, or not yet added."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths]
    found = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({path for path in found if (PROJECT / path).is_file()})


def is_let_in(path: str) -> bool:
    """Whether .dockerignore lets a file into the build: the last line that matches it, or a folder above it, counts."""
    verdict = True
    parents = [path, *map(str, list(Path(path).parents)[:-1])]
    for line in (PROJECT / ".dockerignore").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        names = (
            [Path(each).name for each in parents]
            if "**/" in line
            else [each for each in parents if "*" not in line or "/" not in each]
        )
        if any(fnmatch.fnmatch(each, pattern) for each in names):
            verdict = line.startswith("!")
    return verdict


def is_built_from_what_is_pinned(steps: list[Step]) -> Iterator[str]:
    stages = [step.rest for step in steps if step.word == "FROM"]
    for stage in stages:
        if not re.fullmatch(r"python:3\.12\.\d+-slim-\w+( AS \w+)?", stage):
            yield f"FROM {stage}: no fixed Python 3.12"
    if len(stages) < 2:
        yield "one stage: what builds it stays in it"
    runs = [part.strip() for step in steps if step.word == "RUN" for part in step.rest.split("&&")]
    for run in runs:
        if re.search(r"\bpip\b.* install\b|\bpip install\b", run) and "--no-deps" not in run:
            yield f"RUN {run}: it fetches what no lock names"
        if " -r " in run and "--require-hashes" not in run:
            yield f"RUN {run}: hashes are not checked"
        if re.search(r"\b(curl|wget|apt-get|git clone)\b", run):
            yield f"RUN {run}: it fetches what no lock names"
    if any(step.word == "ADD" for step in steps):
        yield "ADD fetches and unpacks; COPY does not"


def runs_as_nobody_special(steps: list[Step]) -> Iterator[str]:
    final = steps[max(number for number, step in enumerate(steps) if step.word == "FROM") :]
    users = [step.rest for step in final if step.word == "USER"]
    if not users or not re.fullmatch("10001(:10001)?", users[-1]):
        yield f"USER is {users[-1] if users else 'root'}, and not 10001"
    if [step.rest for step in final if step.word == "ENTRYPOINT"] != ['["finegrain"]']:
        yield "ENTRYPOINT is not finegrain"
    if any("--chown" in step.rest for step in final if step.word == "COPY"):
        yield "the code is its user's to change"


def copies_what_is_there(steps: list[Step]) -> Iterator[str]:
    for source in copied(steps):
        found = files_of([source])
        if not found:
            yield f"COPY {source}: it is not in the repository"
        for path in found:
            if not is_let_in(path):
                yield f"COPY {source}: .dockerignore keeps {path} out"
    read_values = yaml.safe_load((PROJECT / "dbt_project.yml").read_text("utf-8"))
    places = [place for key in read_values if key.endswith("-paths") for place in read_values[key]]
    # Nobody would notice a data test that is missing.
    needed = {path for path in files_of(places) if Path(path).suffix in (".sql", ".yml", ".csv")}
    for path in sorted((needed | set(files_of(["orchestration"]))) - set(files_of(copied(steps)))):
        yield f"{path} is not copied"
    for stage in re.findall(r"--from=(\w+)", " ".join(step.rest for step in steps)):
        if not any(step.rest.endswith(f" AS {stage}") for step in steps if step.word == "FROM"):
            yield f"there is no stage {stage}"


def tells_what_is_known(steps: list[Step]) -> Iterator[str]:
    read_values = dict(pair.split("=", 1) for step in steps if step.word == "ENV" for pair in shlex.split(step.rest))
    for name in sorted(read_values):
        if name.startswith(("FINEGRAIN_", "DAGSTER_")) and name not in known():
            yield f"ENV {name}: neither code nor documentation knows it"
        if _SECRETIVE.search(name):
            yield f"ENV {name}: a secret would be in the image"
    if not read_values.get("DAGSTER_HOME", "").startswith(read_values.get("FINEGRAIN_HOME", "?")):
        yield "DAGSTER_HOME, which a probe needs, is not below FINEGRAIN_HOME"


def unpacks_every_extension(steps: list[Step]) -> Iterator[str]:
    runs = " ".join(step.rest for step in steps if step.word == "RUN")
    dependencies = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    for name in re.findall(r"duckdb-extension-([a-z-]+)", " ".join(dependencies)):
        if f"'{name.replace('-', '_')}'" not in runs:
            yield f"DuckDB's {name} is not unpacked"


#: What an image must hold beside what loads, builds and publishes: a package, and what needs it.
PARTS = {
    "dagster-webserver": "the daemon and the webserver run",
    "redis": "`finegrain live` and materializing need",
    "feast": "`finegrain store apply` needs",
}


def holds_every_part(steps: list[Step]) -> Iterator[str]:
    """One image is for all processes."""
    runs = " ".join(step.rest for step in steps if step.word == "RUN")
    locks = "\n".join((PROJECT / lock).read_text("utf-8") for lock in re.findall(r" -r (\S+)", runs))
    for package, why in PARTS.items():
        if not re.search(rf"^{package}(\[.*\])?==", locks, re.M):
            yield f"no lock has {package}, which {why}"


ImageRule = Callable[[list[Step]], Iterator[str]]
IMAGE_RULES: list[ImageRule] = [
    is_built_from_what_is_pinned,
    runs_as_nobody_special,
    copies_what_is_there,
    tells_what_is_known,
    unpacks_every_extension,
    holds_every_part,
]


@pytest.fixture(scope="session")
def containerfile() -> str:
    return (DEPLOY / "Containerfile").read_text("utf-8")


@pytest.mark.parametrize("rule", IMAGE_RULES, ids=lambda rule: rule.__name__)
def test_the_containerfile(rule: ImageRule, containerfile: str) -> None:
    assert list(rule(steps_of(containerfile))) == []


BROKEN_IMAGE: list[tuple[ImageRule, str, str, str]] = [
    (is_built_from_what_is_pinned, "no fixed Python", r"FROM python:\S+", "FROM python:latest"),
    (is_built_from_what_is_pinned, "no fixed Python", r"FROM python:\S+", "FROM python:3.12-slim"),
    (is_built_from_what_is_pinned, "hashes", "--require-hashes ", ""),
    (is_built_from_what_is_pinned, "no lock", "--no-deps --no-build", "--no-build"),
    (is_built_from_what_is_pinned, "no lock", "RUN groupadd", "RUN apt-get install -y git && groupadd"),
    (is_built_from_what_is_pinned, "ADD", "COPY models/", "ADD models/"),
    (is_built_from_what_is_pinned, "one stage", r"(?s)\nFROM python:\S+\n.*", "\n"),
    (runs_as_nobody_special, "not 10001", "USER 10001:10001", "USER finegrain"),
    (runs_as_nobody_special, "not 10001", "USER .*", ""),
    (runs_as_nobody_special, "ENTRYPOINT", "ENTRYPOINT .*", 'CMD ["finegrain"]'),
    (runs_as_nobody_special, "to change", "COPY --from=build", "COPY --chown=10001 --from=build"),
    (copies_what_is_there, "not in the repository", "COPY models/", "COPY modells/"),
    (copies_what_is_there, "keeps tests/conftest.py out", "COPY tests/generic/ ", "COPY tests/ "),
    (copies_what_is_there, "money_is_the_same_everywhere.sql is not copied", "COPY tests/singular/.*", ""),
    (copies_what_is_there, "commands.py is not copied", "COPY orchestration/", "COPY orchestration/ingest/"),
    (copies_what_is_there, "no stage", "--from=build", "--from=builder"),
    (tells_what_is_known, "knows it", "FINEGRAIN_EXTENSIONS=", "FINEGRAIN_EXTENSION="),
    (tells_what_is_known, "in the image", "PYTHONUNBUFFERED=1", "PGPASSWORD=x"),
    (tells_what_is_known, "DAGSTER_HOME", r"DAGSTER_HOME=\S+", "PYTHONX=1"),
    (unpacks_every_extension, "httpfs", "'httpfs', ", ""),
    (holds_every_part, "dagster-webserver", "requirements-dagster.lock", "requirements.lock"),
    (holds_every_part, "redis", " -r requirements-store.lock", ""),
    (holds_every_part, "feast", "requirements-store.lock", "requirements.lock"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "word", "old", "new"),
    BROKEN_IMAGE,
    ids=[f"{rule.__name__}-{n}" for n, (rule, *_) in enumerate(BROKEN_IMAGE)],
)
def test_a_broken_containerfile_is_refused(rule: ImageRule, word: str, old: str, new: str, containerfile: str) -> None:
    broken = re.sub(old, new, containerfile)
    assert broken != containerfile
    said = list(rule(steps_of(broken)))
    assert any(word in each for each in said), said


def test_what_is_no_part_of_the_image_is_kept_out() -> None:
    outside = [
        "deploy/.env",
        ".git/config",
        "var/lake/catalog.sqlite",
        ".venv/bin/python",
        "tests/conftest.py",
        "docs/index.md",
    ]
    outside += [
        "orchestration/cli/__pycache__/commands.cpython-312.pyc",
        "scripts/setup",
        "target/manifest.json",
        "dbt_packages/x/dbt_project.yml",
    ]
    assert [path for path in outside if is_let_in(path)] == []
    assert is_let_in("orchestration/ingest/stream/run.py") and is_let_in("tests/generic/every_row.sql")


def test_what_is_copied_is_enough(containerfile: str, tmp_path: Path) -> None:
    """Runs the steps after the one that creates the environment, on a copy of the copied files. pip's steps are left
    out because this environment exists already."""
    steps = steps_of(containerfile.rpartition("\nFROM ")[0])
    place = tmp_path / "finegrain"
    for path in files_of(copied(steps)):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes((PROJECT / path).read_bytes())
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("FINEGRAIN_", "DBT_", "DAGSTER_"))
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(place),
        "FINEGRAIN_PROJECT": str(place),
        **dict(step.rest.split("=", 1) for step in steps if step.word == "ARG"),
    }

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    assert run("python -c 'import orchestration; print(orchestration.__file__)'") == str(
        place / "orchestration" / "__init__.py"
    )
    assert run("python -m orchestration.cli --version") == __version__
    did = []
    for command in (step.rest for step in steps if step.word == "RUN" and not re.search(r"\bpip\b", step.rest)):
        did.append(re.sub("/opt/(?=extensions)|/tmp/", f"{tmp_path}/", command))
        run(did[-1])
    assert [
        word for word in ("dbt_packages.py", "import_extension", "dbt --quiet parse") if word not in " ".join(did)
    ] == []
    assert (tmp_path / "target" / "manifest.json").is_file()
    found = {path.stem for path in (tmp_path / "extensions").rglob("*.duckdb_extension")}
    assert found == {"ducklake", "httpfs", "mysql_scanner", "postgres_scanner", "sqlite_scanner"}
