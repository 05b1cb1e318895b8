#!/usr/bin/env python3
"""Measures a running instance from the outside, through its public API, and prints one Markdown table.

    ./ferro up --data /var/lib/ferrostack && tests/measure.py --data /var/lib/ferrostack [--servers 100]

Servers are made in the admin project on the network 'measure', which is made and removed again. With the hypervisor
'simulated' (FERRO_HYPERVISOR=simulated ./ferro up ...) the figures are the control plane's alone, and there is room for
thousands of servers; with a real one take as many --servers as the machine holds.
Standard library only. Timings are medians and 99th percentiles of single requests on one kept connection.
"""
import argparse, http.client, json, os, re, ssl, statistics, subprocess, sys, tempfile, time


class Cloud:
    def __init__(self, data, name="ferrostack"):
        section = open(f"{data}/clouds.yaml").read().split(f"  {name}:\n")[1]
        field = lambda key: re.search(rf"^ +{key}: \"?([^\"\n]*)", section, re.M).group(1)
        self.url, self.user, self.password, self.project = map(field, ("auth_url", "username", "password", "project_name"))
        host = re.match(r"https://([^/]+)", self.url).group(1)
        self.connection = http.client.HTTPSConnection(host, context=ssl.create_default_context(cafile=f"{data}/ca.pem"), timeout=120)
        self.token = None

    def call(self, method, path, body=None, headers=None, raw=False):
        given = {"Content-Type": "application/json", "OpenStack-API-Version": "compute 2.79"}
        if self.token:
            given["X-Auth-Token"] = self.token
        given.update(headers or {})
        data = body if raw or body is None else json.dumps(body)
        self.connection.request(method, path, data, given)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise SystemExit(f"{method} {path}: {answer.status} {content.decode(errors='replace')[:500]}")
        return answer, json.loads(content) if content[:1] in (b"{", b"[") else content

    def login(self):
        domain = {"name": "Default"}
        body = {"auth": {"identity": {"methods": ["password"], "password": {"user": {"name": self.user, "domain": domain, "password": self.password}}},
                         "scope": {"project": {"name": self.project, "domain": domain}}}}
        answer, _ = self.call("POST", "/identity/v3/auth/tokens", body)
        return answer.headers["X-Subject-Token"]


def times(count, action):
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        action()
        taken.append((time.perf_counter() - start) * 1e3)
    taken.sort()
    return f"{statistics.median(taken):.2f} / {taken[min(len(taken) - 1, int(len(taken) * 0.99))]:.2f} ms"


def resident(data):
    total, parts = 0, []
    for name in ("api", "hostd", "netd", "blockd"):
        pid = open(f"{data}/pids/{name}").read().strip()
        kib = int(re.search(r"^Pss:\s+(\d+)", open(f"/proc/{pid}/smaps_rollup").read(), re.M).group(1))
        total += kib
        parts.append(f"{name} {kib / 1024:.1f}")
    return f"{total / 1024:.1f} MiB ({', '.join(parts)})"


def to_ssh(data):
    """From the request for a server of the demo project to a command over SSH through its floating IP."""
    cloud = Cloud(data, "ferrostack-demo")
    cloud.token = cloud.login()
    first = lambda path, key, name: next(it["id"] for it in cloud.call("GET", path)[1][key] if it["name"] == name)
    network = first("/network/v2.0/networks?name=demo", "networks", "demo")
    image = first("/image/v2/images?name=ferro", "images", "ferro")
    flavor = first("/compute/v2.1/flavors", "flavors", "m1.nano")
    public = first("/network/v2.0/networks?name=public", "networks", "public")
    name = f"measure-{os.getpid()}"
    key = cloud.call("POST", "/compute/v2.1/os-keypairs", {"keypair": {"name": name}})[1]["keypair"]["private_key"]
    floating = cloud.call("POST", "/network/v2.0/floatingips", {"floatingip": {"floating_network_id": public}})[1]["floatingip"]
    server = None
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(key)
        file.flush()
        try:
            start = time.perf_counter()
            wanted = {"name": name, "imageRef": image, "flavorRef": flavor, "key_name": name, "networks": [{"uuid": network}]}
            server = cloud.call("POST", "/compute/v2.1/servers", {"server": wanted})[1]["server"]["id"]
            ports = []
            while not ports:
                ports = cloud.call("GET", f"/network/v2.0/ports?device_id={server}")[1]["ports"]
            cloud.call("PUT", f"/network/v2.0/floatingips/{floating['id']}", {"floatingip": {"port_id": ports[0]["id"]}})
            while cloud.call("GET", f"/compute/v2.1/servers/{server}")[1]["server"]["status"] != "ACTIVE":
                time.sleep(0.01)
            active = time.perf_counter() - start
            ssh = ["ssh", "-i", file.name, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=2",
                   "-o", "BatchMode=yes", f"ferro@{floating['floating_ip_address']}", "true"]
            while subprocess.run(ssh, stderr=subprocess.DEVNULL).returncode != 0:
                if time.perf_counter() - start > 300:
                    raise SystemExit("no log-in within 300 s")
                time.sleep(0.05)
            return active, time.perf_counter() - start
        finally:
            if server:
                cloud.call("DELETE", f"/compute/v2.1/servers/{server}")
            cloud.call("DELETE", f"/network/v2.0/floatingips/{floating['id']}")
            cloud.call("DELETE", f"/compute/v2.1/os-keypairs/{name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="/var/lib/ferrostack")
    parser.add_argument("--servers", type=int, default=100)
    parser.add_argument("--upload-mib", type=int, default=256)
    parser.add_argument("--ssh", action="store_true", help="only this: from the request for a server with a guest to a log-in")
    options = parser.parse_args()
    if options.ssh:
        for _ in range(3):
            print("create to ACTIVE %.2f s, to a log-in over SSH %.1f s" % to_ssh(options.data), flush=True)
        return
    cloud = Cloud(options.data)
    row = lambda name, value: print(f"| {name} | {value} |", flush=True)
    print("| figure | value (median / p99) |\n| --- | --- |")
    row("memory of all daemons (PSS), idle", resident(options.data))
    row("token issue by password", times(20, cloud.login))
    cloud.token = cloud.login()
    check = {"X-Subject-Token": cloud.token}
    row("token check", times(1000, lambda: cloud.call("GET", "/identity/v3/auth/tokens", headers=check)))
    row("list images", times(200, lambda: cloud.call("GET", "/image/v2/images")))

    blob = os.urandom(1 << 20) * options.upload_mib
    image = cloud.call("POST", "/image/v2/images", {"name": "measure", "disk_format": "raw", "container_format": "bare"})[1]["id"]
    start = time.perf_counter()
    cloud.call("PUT", f"/image/v2/images/{image}/file", blob, {"Content-Type": "application/octet-stream"}, raw=True)
    row(f"image upload of {options.upload_mib} MiB", f"{options.upload_mib / (time.perf_counter() - start):.0f} MiB/s")
    start = time.perf_counter()
    cloud.call("GET", f"/image/v2/images/{image}/file")
    row(f"image download of {options.upload_mib} MiB", f"{options.upload_mib / (time.perf_counter() - start):.0f} MiB/s")
    cloud.call("DELETE", f"/image/v2/images/{image}")

    project = cloud.call("GET", "/identity/v3/auth/tokens", headers=check)[1]["token"]["project"]["id"]
    cloud.call("PUT", f"/volume/v3/{project}/os-quota-sets/{project}", {"quota_set": {"volumes": -1, "gigabytes": -1}})
    volumes = []
    def volume():
        made = cloud.call("POST", f"/volume/v3/{project}/volumes", {"volume": {"size": 1, "name": "measure"}})[1]
        volumes.append(made["volume"]["id"])
        while (now := cloud.call("GET", f"/volume/v3/{project}/volumes/{volumes[-1]}")[1]["volume"]["status"]) != "available":
            if now == "error":
                raise SystemExit("a volume failed")
            time.sleep(0.002)
    row("create a volume, to available", times(20, volume))
    for made in volumes:
        cloud.call("DELETE", f"/volume/v3/{project}/volumes/{made}")

    cloud.call("PUT", f"/network/v2.0/quotas/{project}", {"quota": {"network": -1, "subnet": -1, "port": -1}})
    networks, numbers = [], iter(range(1, 200))
    def make_network():
        made = cloud.call("POST", "/network/v2.0/networks", {"network": {"name": "measure"}})[1]
        networks.append(made["network"]["id"])
    def make_subnet():
        number = next(numbers)
        subnet = {"name": "measure", "network_id": networks[number % len(networks)], "ip_version": 4, "cidr": f"10.78.{number}.0/24"}
        cloud.call("POST", "/network/v2.0/subnets", {"subnet": subnet})
    row("create a network", times(20, make_network))
    row("create a subnet", times(20, make_subnet))
    for made in networks:
        cloud.call("DELETE", f"/network/v2.0/networks/{made}")
    network = cloud.call("POST", "/network/v2.0/networks", {"network": {"name": "measure"}})[1]["network"]["id"]
    subnet = {"name": "measure", "network_id": network, "ip_version": 4, "cidr": "10.77.0.0/16"}
    cloud.call("POST", "/network/v2.0/subnets", {"subnet": subnet})
    ports = []
    def port():
        ports.append(cloud.call("POST", "/network/v2.0/ports", {"port": {"network_id": network}})[1]["port"]["id"])
    row("create a port", times(100, port))
    row("list 100 ports", times(100, lambda: cloud.call("GET", "/network/v2.0/ports?limit=100")))
    for made in ports:
        cloud.call("DELETE", f"/network/v2.0/ports/{made}")

    images = cloud.call("GET", "/image/v2/images")[1]["images"]
    flavors = {flavor["name"]: flavor["id"] for flavor in cloud.call("GET", "/compute/v2.1/flavors")[1]["flavors"]}
    for quota in ("instances", "cores", "ram"):
        cloud.call("PUT", f"/compute/v2.1/os-quota-sets/{project}", {"quota_set": {quota: -1}})
    body = {"server": {"name": "measure", "imageRef": images[0]["id"], "flavorRef": flavors["m1.nano"], "networks": [{"uuid": network}]}}
    servers = []
    def settle(server, wanted):
        while True:
            shown = cloud.call("GET", f"/compute/v2.1/servers/{server}")[1]["server"]
            if shown["status"] == wanted:
                return
            if shown["status"] == "ERROR":
                raise SystemExit(f"server failed: {shown['fault']}")
            time.sleep(0.005)
    def create():
        servers.append(cloud.call("POST", "/compute/v2.1/servers", body)[1]["server"]["id"])
        settle(servers[-1], "ACTIVE")
    try:
        create()
        row("create a server, to ACTIVE (image cached)", times(min(9, options.servers - 1), create))
        if options.servers > 10:
            more = options.servers - len(servers)
            many = {"server": body["server"] | {"min_count": more, "max_count": more, "return_reservation_id": True}}
            start = time.perf_counter()
            made = cloud.call("POST", "/compute/v2.1/servers", many)[1]["reservation_id"]
            while True:
                found = cloud.call("GET", f"/compute/v2.1/servers/detail?reservation_id={made}")[1]["servers"]
                failed = [it["fault"]["message"] for it in found if it["status"] == "ERROR"]
                if failed:
                    raise SystemExit(f"a server failed: {failed[0]}")
                if sum(it["status"] == "ACTIVE" for it in found) == more:
                    break
                time.sleep(0.05)
            row(f"{more} servers by one request, to ACTIVE", f"{more / (time.perf_counter() - start):.1f} per s")
            servers.extend(it["id"] for it in found)
            row(f"list of {len(servers)} servers in detail", times(200, lambda: cloud.call("GET", "/compute/v2.1/servers/detail")))
            row(f"list of {len(servers)} servers", times(200, lambda: cloud.call("GET", "/compute/v2.1/servers")))
            row("show a server", times(200, lambda: cloud.call("GET", f"/compute/v2.1/servers/{servers[0]}")))
            row(f"memory of all daemons (PSS) with {options.servers} servers", resident(options.data))
    finally:
        start = time.perf_counter()
        # By name: those of a request that failed half way too.
        for server in cloud.call("GET", "/compute/v2.1/servers?name=^measure")[1]["servers"]:
            cloud.call("DELETE", f"/compute/v2.1/servers/{server['id']}")
        while cloud.call("GET", "/compute/v2.1/servers?name=^measure")[1]["servers"]:
            time.sleep(0.05)
        row(f"delete {len(servers)} servers", f"{time.perf_counter() - start:.1f} s")
        cloud.call("DELETE", f"/network/v2.0/networks/{network}")


if __name__ == "__main__":
    sys.exit(main())
