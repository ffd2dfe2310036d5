"""`iommufs mount`, argv its arguments, that answers each line on stdin with what it holds, as JSON.

descriptors  by what they are of; of numbers in there only that there is one
shared       bytes of shared mappings, likewise
statistics   what clients have made
objects      instances of our classes
threads      how many
known        how many of our files the kernel knows of
"""

import gc
import json
import os
import re
import sys
from collections import Counter

import trio

from iommufs import cli, machine, server


def name(target):
    return re.sub(r"\d+", "N", target)


def descriptors():
    found = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            found[name(os.readlink(f"/proc/self/fd/{number}"))] += 1
        except FileNotFoundError:
            continue  # the one that listed them
    del found["/dev/cpu_dma_latency"]  # held while calls come close together (native/pm_qos.c)
    return found


def shared():
    found = Counter()
    with open("/proc/self/maps") as maps:
        for line in maps:
            where, rights, _, _, _, *target = line.split(None, 5)
            if rights[3] == "s":
                start, end = (int(word, 16) for word in where.split("-"))
                found[name(target[0].strip())] += end - start
    return found


def objects():
    gc.collect()
    names = (str(type(thing)) for thing in gc.get_objects())
    return Counter(name for name in names if name.startswith("<class 'iommufs."))


def held(made, operations):
    statistics = made.statistics()
    del statistics["functions"], statistics["requests"]  # counters, which only grow
    return {
        "descriptors": descriptors(),
        "shared": shared(),
        "statistics": statistics,
        "objects": objects(),
        "threads": len(os.listdir("/proc/self/task")),
        "known": len(operations._lookups),
    }


def main():
    serve, load = server.serve, machine.load
    made = []

    def load_and_keep(*wanted):
        made.append(load(*wanted))
        return made[0]

    async def answer():
        async for _ in trio.lowlevel.FdStream(os.dup(0)):
            print(json.dumps(held(*made)), flush=True)

    async def serve_and_answer(*arguments, tasks, on_operations, **options):
        def keep(operations):
            made.append(operations)
            on_operations(operations)

        tasks.append(answer)
        await serve(*arguments, tasks=tasks, on_operations=keep, **options)

    machine.load, server.serve = load_and_keep, serve_and_answer
    cli.main(["mount", *sys.argv[1:]])


if __name__ == "__main__":
    main()
