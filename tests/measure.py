#!/usr/bin/env python3
"""Measures a running instance from the outside, through its public API, and prints one Markdown table.

    ./ferro up --data /var/lib/ferrostack && tests/measure.py --data /var/lib/ferrostack [--servers 100] [--ssh]

Servers are made in the admin project on the network 'measure', which is made and removed again. With the hypervisor
'simulated' (FERRO_HYPERVISOR=simulated ./ferro up ...) the figures are the control plane's alone.
Standard library only. Timings are medians and 99th percentiles of single requests on one kept connection.
"""
import argparse, http.client, json, os, re, ssl, statistics, subprocess, sys, time


class Cloud:
    def __init__(self, data):
        text = open(f"{data}/openrc").read()
        env = dict(re.findall(r"export (OS_\w+)=['\"]?([^'\"\n]*)", text))
        self.url, self.user, self.password = env["OS_AUTH_URL"], env["OS_USERNAME"], env["OS_PASSWORD"]
        self.project = env["OS_PROJECT_NAME"]
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="/var/lib/ferrostack")
    parser.add_argument("--servers", type=int, default=100)
    parser.add_argument("--upload-mib", type=int, default=256)
    options = parser.parse_args()
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
        project = cloud.call("GET", "/identity/v3/auth/tokens", headers=check)[1]["token"]["project"]["id"]
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
            start = time.perf_counter()
            for _ in range(options.servers - 10):
                servers.append(cloud.call("POST", "/compute/v2.1/servers", body)[1]["server"]["id"])
            for server in servers:
                settle(server, "ACTIVE")
            row(f"{options.servers - 10} servers at once, to ACTIVE", f"{(options.servers - 10) / (time.perf_counter() - start):.1f} per s")
            row(f"list of {options.servers} servers in detail", times(100, lambda: cloud.call("GET", "/compute/v2.1/servers/detail")))
            row("show a server", times(200, lambda: cloud.call("GET", f"/compute/v2.1/servers/{servers[0]}")))
            row(f"memory of all daemons (PSS) with {options.servers} servers", resident(options.data))
    finally:
        start = time.perf_counter()
        for server in servers:
            cloud.call("DELETE", f"/compute/v2.1/servers/{server}")
        while cloud.call("GET", "/compute/v2.1/servers?name=measure")[1]["servers"]:
            time.sleep(0.05)
        row(f"delete {len(servers)} servers", f"{time.perf_counter() - start:.1f} s")
        cloud.call("DELETE", f"/network/v2.0/networks/{network}")


if __name__ == "__main__":
    sys.exit(main())
