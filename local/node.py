"""The node: its namespaces, network, containerd, kubelet and kube-proxy.

Called by `cluster.py`. The first half is pure (set-up commands, configuration files,
daemons); `start_supervisor` is what makes the namespaces and joins them to the host by one
veth pair, whose host end is ``mlp0``.

    host                      │ node (own network, mount and process namespaces)
    mlp0 10.243.0.1 ──────────┼── uplink 10.243.0.2 ─ kube-proxy ─ cni0 10.244.0.1 ── pods
    routes to pods, Services  │
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from local import layout as net
from local import processes
from local.control_plane import Daemon
from local.layout import Layout
from local.machine import cgroup_hierarchies
from local.steps import Shell, StepError

PROTECTED_TUNABLES: Final = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet would write for the whole machine (kubelet ``setupKernelTunables``).

The node shows it files that already hold these values, so the machine's stay as they are.
"""

ANSWER_SECONDS: Final = 60.0
"""How long process 1 may take to answer; it needs less than one."""

HIDDEN: Final = ("/var/lib", "/var/log")
"""Folders in which programs have fixed paths; the node has its own, inside the state folder."""


def setup_commands(layout: Layout, existing_tunables: list[str]) -> list[list[str]]:
    """What process 1 of the node runs once, inside its namespaces.

    Args:
        layout: The folders.
        existing_tunables: Those of ``PROTECTED_TUNABLES`` that this kernel has.
    """
    state = str(layout.state)
    commands = [
        # A fresh /run: no foreign containerd, systemd or CNI state is in sight, and ours goes with the node.
        ["mount", "-t", "tmpfs", "-o", "mode=755", "mlplatform-run", "/run"],
        ["mkdir", "-p", "/run/lock", "/run/keep-state", "/run/keep-cache", "/run/tunables"],
        ["mount", "--rbind", state, "/run/keep-state"],
        ["mount", "--rbind", str(layout.cache), "/run/keep-cache"],
    ]
    for folder in HIDDEN:
        commands += [["mkdir", "-p", f"{state}/root{folder}"], ["mount", "--bind", f"{state}/root{folder}", folder]]
    for kept, target in (("/run/keep-state", state), ("/run/keep-cache", str(layout.cache))):
        # The bind mounts above may have hidden them; they keep their paths.
        commands += [["mkdir", "-p", target], ["mount", "--rbind", kept, target]]
    for name in existing_tunables:
        shown = f"/run/tunables/{name.replace('/', '-')}"
        commands += [
            ["sh", "-c", f"echo {PROTECTED_TUNABLES[name]} > {shown}"],
            ["mount", "--bind", shown, f"/proc/sys/{name}"],
        ]
    commands += [
        ["ip", "link", "set", "lo", "up"],
        _address(net.NODE_IP, net.LINK_CIDR, net.NODE_LINK),
        ["ip", "link", "set", net.NODE_LINK, "up"],
        # Pods reach each other and this host; anything else fails at once instead of hanging.
        *(["ip", family, "route", "add", "unreachable", "default"] for family in ("-4", "-6")),
        # Without a hardware address of its own a bridge has the lowest of its ports', and pods lose their gateway when that changes.
        ["ip", "link", "add", net.POD_BRIDGE, "address", "02:6d:6c:70:00:01", "type", "bridge"],
        _address(net.POD_GATEWAY, net.POD_CIDR, net.POD_BRIDGE),
        ["ip", "link", "set", net.POD_BRIDGE, "up"],
        # The API server calls webhooks by their Services: kube-proxy turns the address, but a route must be there first.
        ["ip", "route", "add", net.SERVICE_CIDR, "dev", net.POD_BRIDGE],
    ]
    # A pod reaches itself through its Service only when bridged traffic passes iptables.
    if net.IS_IPV6:
        settings = ("net.ipv6.conf.all.forwarding=1", "net.bridge.bridge-nf-call-ip6tables=1")
    else:
        settings = ("net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1")
    return [*commands, *(["sysctl", "-q", "-w", setting] for setting in settings)]


def _address(address: str, network: str, link: str) -> list[str]:
    # Without the second in which IPv6 would look whether somebody else has it.
    return ["ip", "address", "add", f"{address}/{network.partition('/')[2]}", "dev", link, *["nodad"] * net.IS_IPV6]


def host_link_commands(node_pid: int) -> list[list[str]]:
    """Joins the host to the node; the kernel removes all of it when the node ends."""
    link = net.HOST_LINK
    return [
        ["ip", "link", "add", link, "type", "veth", "peer", "name", net.NODE_LINK, "netns", str(node_pid)],
        ["ip", "link", "set", link, "alias", net.LINK_ALIAS],
        _address(net.HOST_IP, net.LINK_CIDR, link),
        ["ip", "link", "set", link, "up"],
        ["ip", "route", "add", net.POD_CIDR, "via", net.NODE_IP],
        ["ip", "route", "add", net.SERVICE_CIDR, "via", net.NODE_IP],
    ]


def containerd_config(layout: Layout, binaries: Path, cni_plugins: Path, pause: str) -> str:
    """The TOML of containerd."""
    return f"""version = 2
root = "{layout.containerd_root}"
state = "/run/mlplatform-containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{layout.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without CAP_SYS_RESOURCE (containers, small VMs) runc cannot lower a score and would fail.
  restrict_oom_score_adj = true
  # Loading a profile would change the host's kernel.
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{binaries}/runc"
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_plugins}"
    conf_dir = "{layout.etc}/cni"
"""


def cni_config() -> dict[str, Any]:
    """The pod network: one bridge, addresses leased in the node's own /run."""
    return {
        "cniVersion": "0.4.0",
        "name": "mlplatform",
        "plugins": [
            {
                "type": "bridge",
                "bridge": net.POD_BRIDGE,
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": net.POD_CIDR, "gateway": net.POD_GATEWAY}]],
                    "routes": [{"dst": "::/0" if net.IS_IPV6 else "0.0.0.0/0"}],
                    "dataDir": "/run/cni",
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def kubelet_config(layout: Layout) -> dict[str, Any]:
    """``kubelet.config.k8s.io/v1beta1``."""
    pki = layout.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": net.NODE_IP,
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{pki}/kubelet-server.key",
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "cgroupRoot": f"/{net.CGROUP}",
        "clusterDNS": [net.DNS_IP],
        "clusterDomain": net.CLUSTER_DOMAIN,
        "resolvConf": f"{layout.etc}/resolv.conf",
        "oomScoreAdj": 0,
        "failSwapOn": False,
        # Images live in the cache and are pruned by `up`; a full disk must not evict the demo.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "serializeImagePulls": False,
        # Ready is noticed within a second; an unchanged status is still written every 5 minutes only.
        "nodeStatusUpdateFrequency": "1s",
        "nodeStatusReportFrequency": "5m",
    }


def proxy_config(layout: Layout) -> dict[str, Any]:
    """``kubeproxy.config.k8s.io/v1alpha1``; conntrack's limits belong to the machine and stay."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": net.NODE_IP,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": {"kubeconfig": f"{layout.pki}/proxy.kubeconfig"},
        "clusterCIDR": net.POD_CIDR,
        "hostnameOverride": net.NODE_NAME,
        "mode": "iptables",
        "oomScoreAdj": 0,
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "iptables": {"minSyncPeriod": "0s", "syncPeriod": "30s"},
    }


def files(layout: Layout, binaries: Path, cni_plugins: Path, pause: str) -> dict[Path, str]:
    """Configuration files of the node."""
    etc = layout.etc
    return {
        etc / "containerd.toml": containerd_config(layout, binaries, cni_plugins, pause),
        etc / "cni" / "10-mlplatform.conflist": json.dumps(cni_config(), indent=1),
        etc / "kubelet.json": json.dumps(kubelet_config(layout), indent=1),
        etc / "proxy.json": json.dumps(proxy_config(layout), indent=1),
        # Pods with dnsPolicy Default get no resolver: nothing leaves the cluster.
        etc / "resolv.conf": "",
    }


def containerd(layout: Layout, binaries: Path, path: str) -> Daemon:
    """The container runtime; started first, so that images can be imported early."""
    return Daemon(
        "containerd", (str(binaries / "containerd"), "--config", str(layout.etc / "containerd.toml")), {"PATH": path}
    )


def daemons(layout: Layout, binaries: Path, path: str) -> list[Daemon]:
    """The kubelet and kube-proxy."""
    # The kubelet would look for a cloud's credentials and wait seconds for an address that is not there.
    env = {"PATH": path, "AWS_EC2_METADATA_DISABLED": "true"}
    kubelet = (
        str(binaries / "kubelet"),
        f"--config={layout.etc}/kubelet.json",
        f"--kubeconfig={layout.pki}/kubelet.kubeconfig",
        f"--root-dir={layout.state}/kubelet",
        f"--cert-dir={layout.pki}",
        f"--hostname-override={net.NODE_NAME}",
        f"--node-ip={net.NODE_IP}",
    )
    proxy = (str(binaries / "kube-proxy"), f"--config={layout.etc}/proxy.json")
    return [Daemon("kubelet", kubelet, env), Daemon("kube-proxy", proxy, env)]


def daemon_path(binaries: Path) -> str:
    """PATH of the daemons: ours first."""
    return f"{binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def make_cgroups(root: Path = Path("/sys/fs/cgroup")) -> None:
    """Makes the pods' parent in every hierarchy, with the settings that children inherit."""
    for hierarchy in cgroup_hierarchies(root):
        unified = hierarchy / "cgroup.controllers"
        folder = hierarchy / net.CGROUP
        folder.mkdir(exist_ok=True)
        if unified.exists() and hierarchy == root:
            wanted = " ".join(f"+{name}" for name in unified.read_text().split())
            for parent in (hierarchy, folder):
                (parent / "cgroup.subtree_control").write_text(wanted)
        if (folder / "cpuset.cpus").exists() and not unified.exists():
            for name in ("cpuset.cpus", "cpuset.mems"):
                (folder / name).write_text((hierarchy / name).read_text())


def write_files(contents: dict[Path, str]) -> None:
    """Writes the files that differ; kube-proxy ends when its own is touched."""
    for path, text in contents.items():
        if path.exists() and path.read_text() == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def spec_text(setup: list[list[str]], wanted: list[Daemon]) -> str:
    """The supervisor's file."""
    return json.dumps({"setup": setup, "daemons": [daemon.to_dict() for daemon in wanted]}, indent=1)


def supervisor_pid(layout: Layout) -> int | None:
    """Host pid of the node's process 1; None when the node does not run."""
    records = processes.read_records(layout.supervisor_record)
    init = records.get("init")
    return init.pid if init is not None and processes.alive(init) else None


def start_supervisor(shell: Shell, layout: Layout) -> None:
    """Makes the node's namespaces, wires them to the host and starts process 1.

    Raises:
        StepError: It did not come up; its log says why.
    """
    for module in ("overlay", "br_netfilter"):
        if shutil.which("modprobe"):
            shell.run(
                ["modprobe", module], check=False
            )  # built in on many kernels; the set-up tells if it is not there
    layout.logs.mkdir(parents=True, exist_ok=True)
    make_cgroups()
    log = layout.logs / "supervisor.log"
    log.write_bytes(b"")
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
    script = [sys.executable, "-I", str(Path(__file__).with_name("supervisor.py"))]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*unshare, *script, str(layout.supervisor_spec), str(layout.logs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            cwd="/",
            start_new_session=True,
        )
    shell.note(f"+ {' '.join([*unshare, *script])}")
    _wire(shell, layout, process)


def _wire(shell: Shell, layout: Layout, process: subprocess.Popen[bytes]) -> None:
    try:
        _expect(process, b"waiting\n", layout, "the node's process 1 did not start")
        init = processes.child_of(process.pid) or 0
        records = {"unshare": processes.identify(process.pid), "init": processes.identify(init)}
        processes.write_records(layout.supervisor_record, {name: r for name, r in records.items() if r is not None})
        for argv in host_link_commands(init):
            shell.run(argv)
        if process.stdin is not None:
            process.stdin.write(b"go\n")
            process.stdin.close()
        _expect(process, b"ready\n", layout, "the node's network or mounts could not be set up")
    except StepError:
        process.kill()
        process.wait()
        raise
    if process.stdout is not None:
        process.stdout.close()
    # It goes on without us; Popen must not warn that it still runs.
    process.returncode = 0


def _expect(process: subprocess.Popen[bytes], line: bytes, layout: Layout, otherwise: str) -> None:
    said = b""
    if process.stdout is not None and select.select([process.stdout], [], [], ANSWER_SECONDS)[0]:
        said = process.stdout.readline()
    if said != line:
        log = (layout.logs / "supervisor.log").read_text(errors="replace").strip().splitlines()
        raise StepError(f"{otherwise}: {' / '.join(log[-3:])}")


def reload_supervisor(layout: Layout) -> None:
    """Makes it start the daemons that were added to its file."""
    pid = supervisor_pid(layout)
    if pid is None:
        raise StepError("the node's process 1 is gone", "Run it again.")
    os.kill(pid, signal.SIGHUP)
