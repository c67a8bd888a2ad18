"""Files, against nginx's own ways with the same ones."""

import os
import random
import shutil
import statistics
import subprocess
import time
import urllib.request

from .report import milliseconds, pairs, report
from .stack import Usage, requests_per_second

GIGABYTE = 1 << 30


def fill(path, size):
    block = os.urandom(1 << 20)
    with open(path, "wb") as file:
        for _ in range(size >> 20):
            file.write(block)


def curl(*arguments):
    """Seconds that a transfer takes."""
    began = time.monotonic()
    subprocess.run(["curl", "-sf", "-o", "/dev/null", *arguments], check=True)
    return time.monotonic() - began


def per_second(size, times):
    return f"{size / statistics.median(times) / 1e6:,.0f} MB/s"


def bench_download(stack, options):
    session = stack.create_session()
    fill(f"{stack.workspaces}/{session}/big", GIGABYTE)
    ours, plain = [], []
    curl(f"{stack.static_url}/{session}/big")
    with Usage(stack) as usage:
        for _ in range(options.rounds):
            plain.append(curl(f"{stack.static_url}/{session}/big"))
            ours.append(curl(f"{stack.url}/sessions/{session}/files/big"))
    report("download of 1 GiB", per_second(GIGABYTE, ours))
    report("  plain nginx, the same file", per_second(GIGABYTE, plain))
    report("  ratio, median of pairs", pairs(plain, ours))
    report("  the responder meanwhile", usage)
    os.remove(f"{stack.workspaces}/{session}/big")


def bench_small(stack, options):
    session = stack.create_session()
    fill_small(f"{stack.workspaces}/{session}/small")
    ours, plain = [], []
    for _ in range(options.rounds):
        plain.append(requests_per_second(f"{stack.static_url}/{session}/small", 64, options.seconds))
        ours.append(requests_per_second(f"{stack.url}/sessions/{session}/files/small", 64, options.seconds))
    report("download of 4 KiB, 64 connections", f"{statistics.median(ours):,.0f} requests/s")
    report("  plain nginx, the same file", f"{statistics.median(plain):,.0f} requests/s")
    report("  ratio, median of pairs", pairs(ours, plain))


def fill_small(path):
    with open(path, "wb") as file:
        file.write(os.urandom(4096))


def bench_upload(stack, options):
    session = stack.create_session()
    source = f"{stack.directory}/upload"
    fill(source, GIGABYTE)
    ours, plain = [], []
    with Usage(stack) as usage:
        for number in range(options.rounds):
            plain.append(curl("-T", source, f"{stack.dav_url}/{number}"))
            os.remove(f"{stack.directory}/dav/dav/{number}")
            ours.append(curl("-T", source, f"{stack.url}/sessions/{session}/files/{number}"))
            os.remove(f"{stack.workspaces}/{session}/{number}")
    report("upload of 1 GiB", per_second(GIGABYTE, ours))
    report("  nginx's DAV module into a plain folder", per_second(GIGABYTE, plain))
    report("  ratio, median of pairs", pairs(plain, ours))
    report("  the responder meanwhile", usage)
    os.remove(source)


def bench_archive(stack, options):
    session = stack.create_session()
    tree = f"{stack.workspaces}/{session}"
    words = [bytes(random.choices(b"abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(5000)]
    for number in range(10_000):
        folder = f"{tree}/{number // 100}"
        if number % 100 == 0:
            os.makedirs(folder)
        with open(f"{folder}/{number}.txt", "wb") as file:
            file.write(b" ".join(random.choices(words, k=1700))[:10_000])
    ours, tar = [], []
    with Usage(stack) as usage:
        for _ in range(options.rounds):
            began = time.monotonic()
            # Not to /dev/null, for which tar would read nothing.
            subprocess.run(f"tar -cz -C {tree} . | wc -c", shell=True, check=True, stdout=subprocess.DEVNULL)
            tar.append(time.monotonic() - began)
            ours.append(curl(f"{stack.url}/sessions/{session}/archive?format=tar.gz"))
    report("archive of 10,000 files, 100 MB, as tar.gz", f"{statistics.median(ours):.2f} s")
    report("  tar -cz of the same tree", f"{statistics.median(tar):.2f} s")
    report("  ratio, median of pairs", pairs(tar, ours))
    report("  the responder meanwhile", usage)
    shutil.rmtree(tree, ignore_errors=True)


def bench_listing(stack, options):
    session = stack.create_session()
    folder = f"{stack.workspaces}/{session}/many"
    os.makedirs(folder)
    for number in range(100_000):
        os.close(os.open(f"{folder}/file {number:06}", os.O_CREAT | os.O_WRONLY))
    # Older than what could still change unseen.
    time.sleep(0.1)
    with Usage(stack) as usage:
        for form in ("html", "json"):
            for name, is_changed in ("after a change", True), ("again", False):
                times = []
                for _ in range(options.rounds * 2):
                    if is_changed:
                        os.close(os.open(f"{folder}/new", os.O_CREAT | os.O_WRONLY))
                        os.remove(f"{folder}/new")
                    began = time.monotonic()
                    with urllib.request.urlopen(f"{stack.url}/sessions/{session}/files/many/?format={form}") as answer:
                        answer.read()
                    times.append(time.monotonic() - began)
                    if is_changed:
                        time.sleep(0.1)
                report(f"first page of a folder of 100,000 files, {form}, {name}",
                       f"median {milliseconds(statistics.median(times))}, longest {milliseconds(max(times))}")
    report("  the responder meanwhile", usage)
    began = time.monotonic()
    count = sum(1 for _ in os.scandir(folder))
    report("  reading its names alone", f"{milliseconds(time.monotonic() - began)} for {count:,}")
    shutil.rmtree(folder)
