"""A link between two network namespaces that takes its time: packets of one end reach the other after a delay, at a limited rate.

What `tc qdisc add ... netem delay ... rate ...` does, for kernels without netem: two TUN devices, and this program between them.

usage: link.py NAMESPACE ADDRESS NAMESPACE ADDRESS DELAY_MS RATE_MBIT_PER_S
"""

import collections
import fcntl
import os
import struct
import subprocess
import sys
import threading
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
# Large packets: there are few of them, so that a gigabit is not too much for this program.
MTU = 60000


def device(name, namespace, address):
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    ip = lambda *words: subprocess.run(["ip", *words], check=True)
    ip("link", "set", name, "netns", namespace)
    ip("-n", namespace, "addr", "add", f"{address}/24", "dev", name)
    ip("-n", namespace, "link", "set", name, "mtu", str(MTU), "txqueuelen", "1000", "up")
    ip("-n", namespace, "link", "set", "lo", "up")
    return tun


def carry(source, target, delay, rate):
    waiting, changed = collections.deque(), threading.Condition()

    def deliver():
        while True:
            with changed:
                while not waiting:
                    changed.wait()
                due, packet = waiting.popleft()
            rest = due - time.monotonic()
            if rest > 0:
                time.sleep(rest)
            os.write(target, packet)

    threading.Thread(target=deliver, daemon=True).start()
    free = 0.0
    while True:
        packet = os.read(source, MTU + 64)
        free = max(free, time.monotonic()) + len(packet) * 8 / rate
        with changed:
            waiting.append((free + delay, packet))
            changed.notify()


def main():
    one, address, other, other_address, delay, rate = sys.argv[1:]
    ends = [device("link0", one, address), device("link1", other, other_address)]
    options = (float(delay) / 1000, float(rate) * 1e6)
    for source, target in (ends, ends[::-1]):
        threading.Thread(target=carry, args=(source, target, *options), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


main()
