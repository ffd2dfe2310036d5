"""The command line. Whatever takes time to import is imported where it is needed."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import socket
import stat
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from iommufs import launcher

if TYPE_CHECKING:
    from iommufs.connect import Guest, Host
    from iommufs.fdreturn import FdReturner
    from iommufs.fuse.operations import Operations
    from iommufs.machine import Machine
    from iommufs.standin import TakeListener

LEVELS = ("debug", "info", "warning", "error")
USAGE = 2

_config = click.option(
    "--config", metavar="FILE", help="The machine, in TOML; without it, the default one."
)
_device = click.option(
    "--device", "devices", metavar="MODEL[,KEY=VALUE]...", multiple=True,
    help="A device of the machine, in place of the default one or added to FILE's; repeatable.",
)  # fmt: skip
_name = click.option("--name", metavar="NAME", help="Let `run --connect NAME` share the server.")
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_log_level = click.option(
    "--log-level", type=click.Choice(LEVELS), default="warning", show_default=True
)


@click.group(help="A working /dev/iommu and VFIO devices on any Linux machine, in userspace.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False,
    callback=lambda context, option, wanted: _print_version(context) if wanted else None,
    help="Show the version and exit.",
)  # fmt: skip
def commands() -> None:
    pass


def _print_version(context: click.Context) -> None:
    from importlib import metadata

    try:
        version = metadata.version("iommufs")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    click.echo(f"iommufs {version}")
    context.exit()


@commands.command(context_settings={"allow_interspersed_args": False})
@_config
@_device
@_name
@click.option("--connect", metavar="NAME", help="Share the server of that name.")
@_log_level
@click.argument("command", metavar="[--] CMD...", nargs=-1, type=click.UNPROCESSED)
def run(
    config: str | None,
    devices: tuple[str, ...],
    name: str | None,
    connect: str | None,
    log_level: str,
    command: tuple[str, ...],
) -> int:
    """Run CMD with our /dev/iommu, /dev/vfio and PCI devices in place of the machine's.

    Exits with CMD's status, 128 + N if signal N killed it; 127 if CMD is not found, 126 if it
    cannot be executed, 125 if iommufs itself fails.
    """
    if not command:
        raise click.UsageError("no command to run")
    if connect is not None:
        if config or devices or name:
            raise click.UsageError("--connect goes without --config, --device and --name")
        from iommufs.connect import Guest

        guest = Guest(connect)
        server = functools.partial(_run_guest, guest, log_level)
        return launcher.launch(list(command), server, guest.enter)
    server = functools.partial(_run_server, (config, devices), name, log_level)
    return launcher.launch(list(command), server)


@commands.command()
@_config
@_device
@_name
@_log_level
@click.argument("directory", metavar="DIR")
def mount(
    config: str | None,
    devices: tuple[str, ...],
    name: str | None,
    log_level: str,
    directory: str,
) -> int:
    """Serve the tree on DIR until SIGTERM or SIGINT; says so when it is ready."""
    launcher.check_machine()
    try:
        directory = os.path.abspath(directory) if directory else ""  # which is no place
        is_directory = stat.S_ISDIR(os.stat(directory).st_mode)
    except OSError as error:
        hint = "; a server was killed: umount it first" if error.errno == errno.ENOTCONN else ""
        raise launcher.LaunchError(f"{directory or 'DIR'}: {error.strerror}{hint}") from None
    if not is_directory:
        raise launcher.LaunchError(f"{directory}: not a directory")
    import trio

    from iommufs import logs, machine, server, topology, user_namespace
    from iommufs.connect import ConnectError, Host

    if name is not None and not user_namespace.may_mount():
        raise launcher.LaunchError(
            "--name: only root can share a mount; `run --name` needs no root"
        )

    logs.configure(log_level)
    server.raise_descriptor_limit()
    try:
        host = None if name is None else Host(name)
        trio.run(_serve_mount, machine.load(config, devices), directory, host)
    except (topology.TopologyError, server.MountError, ConnectError) as error:
        raise launcher.LaunchError(str(error)) from None
    return 0


@commands.command("devices")
@_config
@_device
@_json
def list_devices(config: str | None, devices: tuple[str, ...], as_json: bool) -> int:
    """List what a machine contains: addresses, models, groups, cdevs, BARs, resets."""
    from iommufs import listing, machine, topology

    try:
        made = machine.load(config, devices)
    except topology.TopologyError as error:
        raise launcher.LaunchError(str(error)) from None
    _print(listing.devices(made) if as_json else listing.devices_text(made))
    return 0


@commands.command("models")
@_json
def list_models(as_json: bool) -> int:
    """List the models of devices, and what --device and a topology may say of each."""
    from iommufs import listing

    _print(listing.models() if as_json else listing.models_text())
    return 0


@commands.command("check")
@_json
def check_machine(as_json: bool) -> int:
    """Say what this machine can do, what it cannot, and what would change that.

    Exits with 1 if `iommufs run` cannot work.
    """
    from iommufs import check

    findings = check.run()
    _print(check.objects(findings) if as_json else check.text(findings))
    return int(any(finding.state == check.NO for finding in findings))


def _print(what: object) -> None:
    """A text, or anything else as JSON."""
    import json

    click.echo(what if isinstance(what, str) else json.dumps(what, indent=2))


def _run_guest(
    guest: Guest, log_level: str, front: socket.socket, link: socket.socket, client: int
) -> int:
    from iommufs import logs
    from iommufs.run_server import RunServer

    logs.configure(log_level)
    return RunServer(front, link, client, guest.serve).run()


def _run_server(
    wanted: tuple[str | None, tuple[str, ...]],
    name: str | None,
    log_level: str,
    front: socket.socket,
    link: socket.socket,
    client: int,
) -> int:
    from iommufs import logs
    from iommufs.connect import ConnectError, Host
    from iommufs.run_server import RunServer

    logs.configure(log_level)
    try:
        host = None if name is None else Host(name)
    except ConnectError as error:
        launcher.give_up(front, link, str(error))
        return launcher.FAILED
    return RunServer(front, link, client, functools.partial(_serve_run, wanted, host), host).run()


async def _serve_run(
    wanted: tuple[str | None, tuple[str, ...]],
    host: Host | None,
    tree: str,
    ready: Callable[[], None],
    take_listener: TakeListener,
) -> None:
    from iommufs import machine, server
    from iommufs.fdreturn import FdReturner
    from iommufs.machine_links import add_machine_links

    server.raise_descriptor_limit()
    made = machine.load(*wanted)
    add_machine_links(made.root)
    returners: list[FdReturner] = []

    def on_operations(operations: Operations) -> None:
        returners.append(FdReturner(made.files, operations, tree))

    async def return_fds() -> None:
        listener = await take_listener()
        if listener is not None:
            await returners[0].run(listener)

    async def keep_house() -> None:
        await _keep_house(returners[0], host, tree)

    await server.serve(
        *(made.root, made.files, tree),
        ready=ready,
        tasks=[made.run, return_fds, keep_house],
        on_operations=on_operations,
    )


async def _keep_house(returner: FdReturner, host: Host | None, tree: str) -> None:
    """What goes on beside the answers to those under a filter."""
    import trio

    async with trio.open_nursery() as nursery:
        nursery.start_soon(returner.keep_mapped)
        if host is not None:
            nursery.start_soon(host.serve, tree, returner)


async def _serve_mount(made: Machine, directory: str, host: Host | None) -> None:
    import trio

    from iommufs import notify, server
    from iommufs.fdreturn import FdReturner

    tasks: list[Callable[[], Awaitable[None]]] = [made.run]

    def on_operations(operations: Operations) -> None:
        if host is not None:
            returner = FdReturner(made.files, operations, directory)
            tasks.append(functools.partial(_keep_house, returner, host, directory))

    def ready() -> None:
        print(f"iommufs: serving on {directory}", flush=True)
        notify.notify(notify.READY)

    with trio.CancelScope() as scope:

        async def stop_at_signal() -> None:
            await anext(signals)
            notify.notify(notify.STOPPING)
            scope.cancel()

        tasks.append(stop_at_signal)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            await server.serve(
                *(made.root, made.files, directory),
                ready=ready,
                tasks=tasks,
                on_operations=on_operations,
            )


def main(arguments: list[str] | None = None) -> None:
    """Entry point: every failure is one line on stderr and an exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    is_run = arguments[:1] == ["run"]
    try:
        status = commands.main(arguments, prog_name="iommufs", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(USAGE)
    except click.UsageError as error:
        hint = f"see {error.ctx.command_path if error.ctx else 'iommufs'} --help"
        _fail(f"{error.format_message()} ({hint})", launcher.FAILED if is_run else USAGE)
    except click.Abort:
        sys.exit(128 + signal.SIGINT)
    except launcher.LaunchError as error:
        _fail(str(error), launcher.FAILED if is_run else 1)
    except ImportError as error:
        _fail(launcher.not_whole(error), 1)
    except OSError as error:  # no more processes, a full disk behind stdout, …
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        _fail(str(what), launcher.FAILED if is_run else 1)
    sys.exit(status)


def start() -> NoReturn:
    """main() for a shell, which waits only for what is written: the interpreter is left as it is.

    To take it apart would be a twentieth of a run.
    """
    status: Any = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    for file in sys.stdout, sys.stderr:
        with contextlib.suppress(OSError, AttributeError):  # nobody reads it; it was closed
            file.flush()
    os._exit(status)


def _fail(text: str, status: int) -> NoReturn:
    launcher.say(text)
    sys.exit(status)


if __name__ == "__main__":
    start()
