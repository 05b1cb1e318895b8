#!/usr/bin/env python3
"""Start-up time and memory of monitors with the smallest guest there can be, turn by turn in one run.

    tests/measure_vmm.py --ours target/release/vmm [--firecracker FILE] [--cloud-hypervisor FILE] [-n 40]

    tests/measure_vmm.py --ours target/release/vmm --snapshots [-n 5]

What is measured: from the monitor's exec to the first byte that its guest writes to the serial port (1 vCPU, 128 MiB, one
disk, one tap), the CPU time used until then, and the memory of the process besides the guest's. The guest is 16 bytes of
code in an ELF file, so the difference between two monitors is the monitors. With --snapshots: how long a snapshot of 512 MiB takes and the
guest stands still for it (all of the memory in use, and a tenth), and the time from exec to the restored guest's first byte. Needs root
and /dev/kvm. Standard library only.
"""
import argparse, json, os, re, select, shutil, statistics, struct, subprocess, sys, tempfile, time

MEMORY = 128
MARK = b"\x02"  # In no monitor's log.
TAP = f"fvm{os.getpid() % 100000}"
MAC = "02:00:00:00:00:01"


# cli; mov edx,0x3f8; mov al,2; out dx,al; mov al,10; out dx,al; 1: hlt; jmp 1b. The same bytes in 32- and 64-bit mode.
ONCE = b"\xfa\xba\xf8\x03\x00\x00\xb0" + MARK + b"\xee\xb0\x0a\xee\xf4\xeb\xfd"


def writer(megabytes):
    """A guest that writes to each page of so much memory from 32 MiB on, and then says the mark again and again."""
    first = 32 << 20
    # cli; mov edi,first; 1: mov byte [edi],1; add edi,4096; cmp edi,end; jb 1b
    code = b"\xfa\xbf" + struct.pack("<I", first) + b"\xc6\x07\x01\x81\xc7\x00\x10\x00\x00\x81\xff" + struct.pack("<I", first + (megabytes << 20)) + b"\x72\xef"
    # mov edx,0x3f8; 2: mov al,2; out dx,al; mov ecx,100; 3: loop 3b; jmp 2b
    return code + b"\xba\xf8\x03\x00\x00\xb0" + MARK + b"\xee\xb9\x64\x00\x00\x00\xe2\xfe\xeb\xf4"


def guest(path, pvh, code=ONCE):
    base, offset = 0x100000, 0x1000
    # The note that names the PVH entry (XEN_ELFNOTE_PHYS32_ENTRY), after the program.
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", base) if pvh else b""
    headers = [struct.pack("<IIQQQQQQ", 1, 5, offset, base, base, len(code), len(code), 0x1000)]
    if pvh:
        headers.append(struct.pack("<IIQQQQQQ", 4, 4, offset + 64, base + 64, base + 64, len(note), len(note), 4))
    head = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base, 64, 0, 0, 64, 56, len(headers), 0, 0, 0)
    with open(path, "wb") as file:
        file.write((head + b"".join(headers)).ljust(offset, b"\0") + code.ljust(64, b"\0") + note)


def memory(pid):
    """KiB resident and dirty for itself alone, of all mappings but the guest's memory."""
    total = {"Rss": 0, "Private_Dirty": 0}
    counts = True
    for line in open(f"/proc/{pid}/smaps"):
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            counts = int(match[2], 16) - int(match[1], 16) < MEMORY << 19
        elif counts and (match := re.match(r"(Rss|Private_Dirty): +(\d+)", line)):
            total[match[1]] += int(match[2])
    return total["Rss"], total["Private_Dirty"]


def cpu_seconds(pid):
    """Seconds of CPU time of the process, to the nanosecond scale of the scheduler, over all its threads."""
    return sum(int(open(f"/proc/{pid}/task/{task}/schedstat").read().split()[0]) for task in os.listdir(f"/proc/{pid}/task")) / 1e9


def descendants(pid):
    out = [pid]
    for task in os.listdir(f"/proc/{pid}/task"):
        for child in open(f"/proc/{pid}/task/{task}/children").read().split():
            out += descendants(int(child))
    return out


def once(command, log):
    start = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0)
    try:
        seen = b""
        while MARK not in seen:
            ready, _, _ = select.select([child.stdout], [], [], 20)
            chunk = os.read(child.stdout.fileno(), 4096) if ready else b""
            if not chunk:
                raise SystemExit(f"{command[0]}: no byte from its guest; its messages: {open(log.name, errors='replace').read()[-800:]}")
            seen += chunk
        wall = time.perf_counter() - start
        pids = descendants(child.pid)
        cpu = sum(map(cpu_seconds, pids))
        time.sleep(0.1)
        sizes = [memory(pid) for pid in pids]
        return wall * 1e3, cpu * 1e3, max(size[0] for size in sizes), sum(size[1] for size in sizes)
    finally:
        child.kill()
        child.communicate()


def first_byte(child):
    """Waits for the next mark on a monitor's output; everything before is dropped."""
    while True:
        ready, _, _ = select.select([child.stdout], [], [], 60)
        chunk = os.read(child.stdout.fileno(), 65536) if ready else b""
        if not chunk:
            raise SystemExit(f"no byte from the guest: {child.stderr.read()[-500:] if child.poll() is not None else 'silence'}")
        if MARK in chunk:
            return


def snapshots(monitor, count):
    """Figures of snapshots in a file system in memory, so that no disk is measured."""
    print(f"load {os.getloadavg()[0]:.1f}, kernel {os.uname().release}, 512 MiB, least of {count} (median)\n")
    print("| in use | stands still, ms | snapshot in all, ms | exec to the restored guest's byte, ms |\n| --- | --- | --- | --- |")
    for megabytes in (448, 51):
        stood, whole, restored = [], [], []
        for _ in range(count):
            folder = tempfile.mkdtemp(dir="/dev/shm")
            try:
                kernel, place = os.path.join(folder, "kernel.elf"), os.path.join(folder, "snapshot")
                guest(kernel, False, writer(megabytes))
                start = [monitor, "run", "--kernel", kernel, "--mem", "512", "--snapshot", place]
                # Its log is read line by line, its guest all the time: a full pipe would stop the guest.
                with open(os.path.join(folder, "log"), "w+") as log:
                    child = subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0)
                    try:
                        first_byte(child)
                        since = time.perf_counter()
                        child.stdin.write(b"\x01s")
                        said = None
                        while not said:
                            first_byte(child) if child.poll() is None else sys.exit(f"the monitor ended: {open(log.name).read()}")
                            said = re.search(r"snapshot taken: .* stood still for (\d+) ms", open(log.name).read())
                        whole.append((time.perf_counter() - since) * 1e3)
                        stood.append(float(said[1]))
                    finally:
                        child.kill()
                        child.communicate()
                since = time.perf_counter()
                child = subprocess.Popen([monitor, "run", "--restore", place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
                try:
                    first_byte(child)
                    restored.append((time.perf_counter() - since) * 1e3)
                finally:
                    child.kill()
                    child.communicate()
            finally:
                shutil.rmtree(folder)
        cells = [f"{min(of):.1f} ({statistics.median(of):.1f})" for of in (stood, whole, restored)]
        print(f"| {megabytes} MiB | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--firecracker")
    parser.add_argument("--cloud-hypervisor")
    parser.add_argument("--snapshots", action="store_true")
    parser.add_argument("-n", type=int)
    given = parser.parse_args()
    if given.snapshots:
        return snapshots(given.ours, given.n or 5)
    given.n = given.n or 40
    with tempfile.TemporaryDirectory() as folder:
        plain, pvh, disk = (os.path.join(folder, name) for name in ("plain.elf", "pvh.elf", "disk"))
        guest(plain, False)
        guest(pvh, True)
        with open(disk, "wb") as file:
            file.truncate(64 << 20)
        monitors = {"ours": [given.ours, "run", "--kernel", plain, "--mem", str(MEMORY), "--cpus", "1", "--disk", disk, "--tap", TAP]}
        if given.firecracker:
            config = os.path.join(folder, "firecracker.json")
            with open(config, "w") as file:
                json.dump({"boot-source": {"kernel_image_path": plain, "boot_args": "console=ttyS0"},
                           "drives": [{"drive_id": "d0", "path_on_host": disk, "is_root_device": False, "is_read_only": False}],
                           "network-interfaces": [{"iface_id": "n0", "host_dev_name": TAP, "guest_mac": MAC}],
                           "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY}}, file)
            monitors["Firecracker"] = [given.firecracker, "--no-api", "--level", "Error", "--config-file", config]
        if given.cloud_hypervisor:
            monitors["Cloud Hypervisor"] = [given.cloud_hypervisor, "--kernel", pvh, "--cpus", "boot=1", "--memory", f"size={MEMORY}M", "--disk",
                                            f"path={disk},image_type=raw", "--net", f"tap={TAP},mac={MAC}", "--serial", "tty", "--console", "off"]
        subprocess.run(["ip", "tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"], check=True)
        try:
            results = {name: [] for name in monitors}
            with open(os.path.join(folder, "log"), "w") as log:
                for turn in range(given.n):
                    for name, command in monitors.items():
                        results[name].append(once(command, log))
                    print(f"\r{turn + 1} of {given.n}", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
        finally:
            subprocess.run(["ip", "link", "del", TAP], check=False)
    print(f"load {os.getloadavg()[0]:.1f}, kernel {os.uname().release}, {given.n} runs each, turn by turn\n")
    print("| monitor | wall least / median, ms | CPU least / median, ms | RSS, MiB | Private_Dirty, KiB |\n| --- | --- | --- | --- | --- |")
    for name, runs in results.items():
        wall, cpu, rss, dirty = zip(*runs)
        print(f"| {name} | {min(wall):.1f} / {statistics.median(wall):.1f} | {min(cpu):.1f} / {statistics.median(cpu):.1f} "
              f"| {statistics.median(rss) / 1024:.2f} | {statistics.median(dirty):.0f} |")


if __name__ == "__main__":
    main()
