"""A server for contract tests: the default machine, mounted on argv[1].

Each line on stdin is answered by one on stdout with what lives now and how many
requests were answered, as JSON; it ends with stdin.
Warnings and errors go to stderr.
"""

import json
import sys

import trio

from iommufs import logs, server, topology_file
from iommufs.machine import Machine


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


async def main() -> None:
    machine = Machine(topology_file.default())

    async def answer() -> None:
        async for _ in trio.lowlevel.FdStream(sys.stdin.fileno()):
            now = machine.statistics()
            del now["functions"]  # counters, which only grow
            say({"requests": now.pop("requests"), "now": now})
        scope.cancel()

    with trio.CancelScope() as scope:
        await server.serve(
            machine.root,
            machine.files,
            sys.argv[1],
            ready=lambda: say("ready"),
            tasks=[machine.run, answer],
        )


if __name__ == "__main__":
    logs.configure()
    trio.run(main)
