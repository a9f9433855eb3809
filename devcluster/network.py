"""The node's bridge, its firewall rules and kernel settings, and their complete removal.

Promise: pods talk to each other, to services and to this machine's bridge address; they reach the
world outside only with `egress`, and nothing outside reaches them. After `remove` no interface, no
rule and no kernel setting is left. Trap avoided: kube-proxy's own `--cleanup` needs the binary and
its configuration; here the chains are taken out by their name prefix in one atomic step per table.
"""

import json
from pathlib import Path

from devcluster import controlplane, node
from devcluster.errors import DevclusterError
from devcluster.node import NodeFiles
from devcluster.run import run, try_run

OWN_PREFIX = "LMTRAIN-"
KUBE_PREFIX = "KUBE-"
FAMILIES = ("iptables", "ip6tables")
FORWARD_SETTING = "net/ipv4/ip_forward"
# The kubelet sets the last six itself.
TOUCHED_SETTINGS = (
    FORWARD_SETTING,
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def create(files: NodeFiles, *, egress: bool) -> None:
    """Bridge, routes, rules and settings; safe to repeat."""
    _save_settings(files.saved_sysctls)
    (Path("/proc/sys") / FORWARD_SETTING).write_text("1")
    if bridge_owner() is None:
        run("ip", "link", "add", node.BRIDGE, "address", node.BRIDGE_MAC, "type", "bridge")
    address = f"{node.NODE_ADDRESS}/{node.PREFIX_LENGTH}"
    run("ip", "address", "replace", address, "dev", node.BRIDGE)
    run("ip", "link", "set", node.BRIDGE, "up", "alias", files.layout.identity)
    run("ip", "route", "replace", controlplane.SERVICE_CIDR, "dev", node.BRIDGE)
    _bridge_through_iptables()
    for table, text in rules(egress=egress).items():
        _remove_chains("iptables", table, prefixes=(OWN_PREFIX,))
        run("iptables-restore", "--noflush", stdin=text)


def remove(files: NodeFiles) -> None:
    """Take everything away again; safe to repeat, and after a crash."""
    if bridge_owner() == files.layout.identity:
        for family in FAMILIES:
            for table in _tables(family):
                _remove_chains(family, table, prefixes=(OWN_PREFIX, KUBE_PREFIX))
        run("ip", "link", "delete", node.BRIDGE)
    _restore_settings(files.saved_sysctls)


def bridge_owner() -> str | None:
    """Identity of the cluster that the bridge belongs to; None when there is no bridge."""
    shown = try_run("ip", "-json", "link", "show", "dev", node.BRIDGE)
    if shown.returncode:
        return None
    (link,) = json.loads(shown.stdout)
    return str(link.get("ifalias", ""))


def foreign_kubernetes(files: NodeFiles) -> str | None:
    """What shows that another Kubernetes uses this machine's network; None when nothing does."""
    owner = bridge_owner()
    if owner not in (None, files.layout.identity):
        return f"the bridge {node.BRIDGE} belongs to {owner}, a devcluster of another LMTRAIN_CACHE"
    if owner is None and f"\n:{KUBE_PREFIX}" in try_run("iptables-save").stdout:
        return "iptables has chains named KUBE-*"
    return None


def rules(*, egress: bool) -> dict[str, str]:
    """Input of iptables-restore per table; our chains come first, so a host firewall may stay."""
    bridge = node.BRIDGE
    outside = "ACCEPT" if egress else "REJECT"
    filter_table = f"""*filter
:{OWN_PREFIX}FORWARD - [0:0]
:{OWN_PREFIX}INPUT - [0:0]
-A {OWN_PREFIX}FORWARD -i {bridge} -o {bridge} -j ACCEPT
-A {OWN_PREFIX}FORWARD -i {bridge} -j {outside}
-A {OWN_PREFIX}FORWARD -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A {OWN_PREFIX}FORWARD -o {bridge} -j REJECT
-A {OWN_PREFIX}INPUT -i {bridge} -j ACCEPT
-I FORWARD 1 -j {OWN_PREFIX}FORWARD
-I INPUT 1 -j {OWN_PREFIX}INPUT
COMMIT
"""
    masquerade = f"-A {OWN_PREFIX}EGRESS -s {node.POD_CIDR} ! -o {bridge} -j MASQUERADE\n"
    nat_table = f"""*nat
:{OWN_PREFIX}EGRESS - [0:0]
{masquerade if egress else ""}-I POSTROUTING 1 -j {OWN_PREFIX}EGRESS
COMMIT
"""
    return {"filter": filter_table, "nat": nat_table}


def removal_of(saved: str, *, prefixes: tuple[str, ...]) -> str:
    """From the output of `iptables-save -t T`, the input of iptables-restore that takes out every
    chain with one of the prefixes and every rule that jumps to one; empty when there is none.
    """

    def is_ours(chain: str) -> bool:
        return chain.startswith(prefixes)

    lines = saved.splitlines()
    table = next((line for line in lines if line.startswith("*")), "")
    chains = [line[1:].split()[0] for line in lines if line.startswith(":")]
    ours = [chain for chain in chains if is_ours(chain)]
    jumps = [
        "-D" + line[2:]
        for line in lines
        if line.startswith("-A ") and not is_ours(line.split()[1]) and is_ours(_target(line))
    ]
    if not ours and not jumps:
        return ""
    flush = [f":{chain} - [0:0]" for chain in ours]
    delete = [f"-X {chain}" for chain in ours]
    return "\n".join([table, *flush, *jumps, *delete, "COMMIT", ""])


def _target(rule: str) -> str:
    words = rule.split()
    return words[words.index("-j") + 1] if "-j" in words else ""


def _tables(family: str) -> list[str]:
    saved = try_run(f"{family}-save").stdout
    return [line[1:] for line in saved.splitlines() if line.startswith("*")]


def _remove_chains(family: str, table: str, *, prefixes: tuple[str, ...]) -> None:
    change = removal_of(run(f"{family}-save", "-t", table), prefixes=prefixes)
    if change:
        run(f"{family}-restore", "--noflush", stdin=change)


def _bridge_through_iptables() -> None:
    """Let a pod reach itself and its neighbours through a service's address.

    Answers between two pods on one bridge would otherwise bypass the address translation.
    """
    if not Path("/proc/sys/net/bridge").exists():
        try_run("modprobe", "br_netfilter")
    switched = try_run(
        *("ip", "link", "set", node.BRIDGE, "type", "bridge", "nf_call_iptables", "1")
    )
    if switched.returncode or not Path("/proc/sys/net/bridge").exists():
        raise DevclusterError(
            f"bridge {node.BRIDGE} cannot pass through iptables, which services need: "
            f"`modprobe br_netfilter` {switched.stderr.strip()}"
        )


def _save_settings(path: Path) -> None:
    if path.exists():
        return
    existing = [name for name in TOUCHED_SETTINGS if (Path("/proc/sys") / name).exists()]
    values = {name: (Path("/proc/sys") / name).read_text().strip() for name in existing}
    path.write_text(json.dumps(values))


def _restore_settings(path: Path) -> None:
    if not path.exists():
        return
    for name, value in json.loads(path.read_text()).items():
        (Path("/proc/sys") / name).write_text(value)
    path.unlink()
