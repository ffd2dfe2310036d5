"""Programs under `iommufs run`: statuses, signals, files, the namespace; nothing is left."""

import os
import pty
import select
import signal
import statistics
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, our_mounts

pytestmark = pytest.mark.mount

LONG = 30  # seconds after which something hangs


# ---- exit status ----


@pytest.mark.parametrize("status", [0, 3, 127, 255])
def test_exit_status_is_the_commands(runs, status):
    assert runs.run("sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("name", ["KILL", "INT", "SEGV"])
def test_death_by_signal_is_128_more(runs, name):
    number = getattr(signal, f"SIG{name}")
    assert runs.run("sh", "-c", f"kill -{name} $$").returncode == 128 + number


def test_command_not_found_is_127(runs):
    result = runs.run("/no/such/program")
    assert result.returncode == 127
    assert result.stderr == "iommufs: /no/such/program: No such file or directory\n"
    assert runs.run("no-such-program-anywhere").returncode == 127
    result = runs.run("")
    assert (result.returncode, result.stderr) == (127, "iommufs: : No such file or directory\n")


def test_a_missing_interpreter_is_named_as_such(runs, tmp_path):
    script = tmp_path / "iommufs-script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    result = runs.run(str(script))
    assert result.returncode == 127
    assert result.stderr == f"iommufs: {script}: its interpreter is not there\n"


def test_the_line_of_a_failure_goes_to_stderr_or_nowhere(runs):
    result = runs.run("/no/such/program", preexec_fn=lambda: os.close(2))
    assert (result.returncode, result.stdout, result.stderr) == (127, "", "")


def test_command_not_executable_is_126(runs, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    result = runs.run(str(plain))
    assert result.returncode == 126
    assert result.stderr == f"iommufs: {plain}: Permission denied\n"
    assert runs.run(str(tmp_path)).returncode == 126


def test_a_server_that_cannot_start_is_one_line_and_the_command_does_not_run(runs):
    result = runs.run("--fail", "echo", "ran")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "iommufs: the tree cannot be made\n"
    result = runs.run("--die", "echo", "ran")
    assert (result.returncode, result.stdout) == (125, "")
    assert result.stderr == "iommufs: the server ended before the command began\n"


def test_a_name_that_is_no_text_is_one_line_too():
    command = [sys.executable, "-m", "iommufs.cli", "run", "--config", b"no\xffsuch", "--", "true"]
    result = subprocess.run(command, capture_output=True, timeout=LONG)
    assert result.returncode == 125
    assert result.stderr == b"iommufs: no\\udcffsuch: No such file or directory\n"


@pytest.mark.parametrize("command", [["run", "true"], ["devices"]])
def test_an_installation_that_is_not_whole_is_one_line(tmp_path, command):
    (tmp_path / "trio.py").write_text("raise ImportError('libtrio.so: not found')")
    result = subprocess.run(
        [sys.executable, "-m", "iommufs.cli", *command],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        text=True,
        timeout=LONG,
    )
    assert result.returncode == (125 if command[0] == "run" else 1)
    assert result.stderr == "iommufs: the installation is not whole: libtrio.so: not found\n"


def test_nothing_is_left_unclosed(runs):
    runs.environment["PYTHONDEVMODE"] = "1"
    result = runs.run("/bin/true")
    assert (result.returncode, result.stderr) == (0, "")


# ---- files, environment, signals ----


def test_standard_files_pass_through(runs):
    result = runs.run("sh", "-c", "cat; echo err >&2", input="over\n")
    assert (result.stdout, result.stderr) == ("over\n", "err\n")


OPEN_FILES = """
    import os, sys
    def is_open(fd):
        try:
            return bool(os.fstat(fd))
        except OSError:
            return False
    print([fd for fd in range(1024) if is_open(fd)], file=sys.stderr)
"""


def test_inherited_files_pass_through_and_nothing_more(runs):
    read, write = os.pipe()
    assert runs.python(OPEN_FILES, pass_fds=[write]).stderr == f"[0, 1, 2, {write}]\n"
    runs.python(f"import os; os.write({write}, b'hello')", pass_fds=[write])
    os.close(write)
    assert os.read(read, 100) == b"hello"
    assert os.read(read, 100) == b""
    os.close(read)


def test_closed_standard_files_stay_closed(runs):
    command = [*runs.small_run, sys.executable, "-c", textwrap.dedent(OPEN_FILES)]
    result = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&-', "sh", *command],
        env=runs.environment, stderr=subprocess.PIPE, timeout=LONG,
    )  # fmt: skip
    assert result.stderr == b"[2]\n"


def test_a_pipe_closes_when_the_command_closes_it(runs):
    """Neither front nor server holds on to the user's files."""
    child = runs.start("sh", "-c", "exec >&-; read wait", stdin=-1, stdout=-1)
    assert child.stdout.read() == b""
    assert child.poll() is None
    child.communicate(b"\n", timeout=LONG)
    assert child.returncode == 0


def test_directory_environment_and_umask_pass_through(runs, tmp_path):
    runs.environment["ANYTHING"] = "else"
    result = runs.run("sh", "-c", "umask 027; pwd; echo $ANYTHING; umask", cwd=tmp_path)
    assert result.stdout.split() == [str(tmp_path), "else", "0027"]
    result = runs.run("sh", "-c", "pwd; umask", cwd="/sys/bus", preexec_fn=lambda: os.umask(0o31))
    assert result.stdout.split() == ["/sys/bus", "0031"]


def test_a_removed_working_directory_is_no_obstacle(runs, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    result = runs.run("readlink", "/proc/self/cwd", cwd=gone, preexec_fn=gone.rmdir)
    assert result.stdout == f"{gone} (deleted)\n"


def test_the_environment_is_exactly_the_users(runs):
    """Python sets LC_CTYPE in its own where there is no locale (PEP 538)."""
    name, value = runs.token.split("=")
    runs.environment = {name: value, "PYTHONPATH": runs.environment["PYTHONPATH"], "LANG": "C"}
    result = runs.run("/usr/bin/env")
    assert result.stdout == "".join(f"{key}={text}\n" for key, text in runs.environment.items())


def test_a_script_without_an_interpreter_goes_to_the_shell(runs, tmp_path):
    script = tmp_path / "iommufs-script"
    script.write_text("echo $1; exit 5\n")
    script.chmod(0o755)
    runs.environment["PATH"] += f":{tmp_path}"
    for command in str(script), script.name:
        result = runs.run(command, "argument")
        assert (result.returncode, result.stdout) == (5, "argument\n")


def test_signal_actions_and_mask_pass_through(runs):
    program = """
        import signal
        ignored = {n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN}
        print(sorted(int(n) for n in ignored - {signal.SIGPIPE, signal.SIGXFSZ}))
        print(sorted(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    """

    def prepare():
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

    plain = runs.python(program)
    assert plain.stdout == "[]\n[]\n"
    prepared = runs.python(program, preexec_fn=prepare)
    ignored = sorted([signal.SIGUSR2, signal.SIGCHLD])
    assert prepared.stdout == f"{[int(n) for n in ignored]}\n{[int(signal.SIGUSR1)]}\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGWINCH", "SIGRTMIN"])
def test_signals_to_the_front_reach_the_command_once(runs, name):
    program = f"""
        import signal
        waited = [signal.{name}, signal.SIGUSR2]
        signal.pthread_sigmask(signal.SIG_BLOCK, waited)
        print("up", flush=True)
        for _ in waited:
            print(signal.sigwaitinfo(waited).si_signo, flush=True)
        print(signal.sigtimedwait(waited, 0))
    """
    number = getattr(signal, name)
    with runs.start(sys.executable, "-c", textwrap.dedent(program), stdout=-1) as child:
        assert child.stdout.readline() == b"up\n"
        child.send_signal(number)
        assert child.stdout.readline() == b"%d\n" % number
        child.send_signal(signal.SIGUSR2)
        assert child.stdout.read() == b"%d\nNone\n" % signal.SIGUSR2
    assert child.returncode == 0


def test_a_stopped_command_stops_the_front_and_both_go_on(runs):
    child = runs.start("sh", "-c", "kill -STOP $$; exit 9")
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    child.send_signal(signal.SIGCONT)
    assert child.wait(LONG) == 9


def in_terminal(runs, command):
    """Start a command as the foreground job of a new terminal, as a shell does; (pid, terminal)."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.execve(command[0], command, runs.environment)
        finally:
            os._exit(99)
    return pid, terminal


def read_until(terminal, text):
    seen = b""
    while text not in seen:
        seen += os.read(terminal, 1000)
    return seen


WHERE_THE_SERVER_IS = """
    import os, signal
    server = os.getppid()
    print(os.getsid(server) == os.getsid(0), os.getpgid(server) == os.getpgrp(), flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    print(open("/dev/iommu").read(4))
"""


def test_without_a_terminal_the_server_has_a_group_of_its_own_only(runs):
    result = runs.python(WHERE_THE_SERVER_IS, start_new_session=True)
    assert (result.returncode, result.stdout) == (0, "True False\nours\n"), result.stderr


def test_on_a_terminal_the_server_has_a_session_of_its_own(runs):
    program = textwrap.dedent(WHERE_THE_SERVER_IS)
    pid, terminal = in_terminal(runs, [*runs.small_run, sys.executable, "-c", program])
    assert b"False False\r\nours" in read_until(terminal, b"ours")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(terminal)


def test_the_terminal_is_the_commands(runs):
    program = """
        import os, sys
        assert os.isatty(0) and os.ttyname(0) == os.ttyname(1)
        assert os.tcgetpgrp(0) == os.getpgrp()
        open("/dev/tty").close()
        print("fine", input("name? "))
    """
    command = [*runs.small_run, sys.executable, "-c", textwrap.dedent(program)]
    pid, terminal = in_terminal(runs, command)
    read_until(terminal, b"name? ")
    os.write(terminal, b"joe\n")
    read_until(terminal, b"fine joe")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_control_c_reaches_the_command_once(runs):
    program = """
        import signal, sys, time
        got = []
        signal.signal(signal.SIGINT, lambda *_: got.append(1))
        print("up", flush=True)
        input()
        sys.exit(50 + len(got))
    """
    command = [*runs.small_run, sys.executable, "-c", textwrap.dedent(program)]
    pid, terminal = in_terminal(runs, command)
    read_until(terminal, b"up")
    os.write(terminal, b"\x03")
    read_until(terminal, b"^C")
    os.write(terminal, b"\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 51
    os.close(terminal)


JOB_SHELL = """
    # The least that a shell does for one job: its own group, the terminal, stop and go on.
    import os, signal, sys
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        os.execv(sys.argv[1], sys.argv[1:])
    stops = 0
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            break
        stops += 1
        os.tcsetpgrp(0, os.getpgrp())
        print("stopped", flush=True)
        os.tcsetpgrp(0, pid)
        os.killpg(pid, signal.SIGCONT)
    os.tcsetpgrp(0, os.getpgrp())
    print("ended", os.waitstatus_to_exitcode(status), f"{stops}.", flush=True)
"""


def test_control_z_stops_the_job_once(runs):
    client = "print('up', flush=True); input(); print('more', flush=True)"
    shell = [sys.executable, "-c", textwrap.dedent(JOB_SHELL)]
    pid, terminal = in_terminal(runs, [*shell, *runs.small_run, sys.executable, "-c", client])
    read_until(terminal, b"up")
    os.write(terminal, b"\x1a")
    read_until(terminal, b"stopped")
    os.write(terminal, b"\n")
    assert b"ended 0 1." in read_until(terminal, b".")
    os.waitpid(pid, 0)
    os.close(terminal)


# ---- the namespace ----


def test_dev_and_sys_have_ours(runs):
    result = runs.run(
        "cat", "/dev/iommu", "/sys/bus/pci/drivers_autoprobe", "/sys/module/vfio/version",
        "/sys/devices/pci0000:00/0000:00:06.0/vendor",
    )  # fmt: skip
    assert result.stdout == "ours1\n0.3\n0x1234\n"
    assert runs.run("ls", "/dev/vfio", "/sys/bus/pci").stdout == (
        "/dev/vfio:\nsingle\nstuck\n\n/sys/bus/pci:\ndrivers_autoprobe\n"
    )


DEV_LISTING = """
    import json, os, stat
    listing = {}
    for name in os.listdir("/dev"):
        found = os.lstat("/dev/" + name)
        link = os.readlink("/dev/" + name) if stat.S_ISLNK(found.st_mode) else None
        listing[name] = [found.st_mode, found.st_rdev, found.st_uid, found.st_gid, link]
    print(json.dumps({n: v for n, v in sorted(listing.items()) if n not in ("iommu", "vfio")}))
"""


def test_the_rest_of_dev_is_the_machines(runs):
    inside = runs.python(DEV_LISTING).stdout
    command = [sys.executable, "-c", textwrap.dedent(DEV_LISTING)]
    assert inside == subprocess.run(command, capture_output=True, text=True).stdout


def test_the_rest_of_dev_works(runs, tmp_path):
    name = f"iommufs-{uuid.uuid4()}"
    program = """
        import os, sys
        open("/dev/null", "w").write("x")
        assert open("/dev/zero", "rb").read(3) == bytes(3)
        assert len(open("/dev/urandom", "rb").read(3)) == 3
        master, slave = os.openpty()
        assert os.ttyname(slave).startswith("/dev/pts/")
        open("/dev/shm/" + sys.argv[1], "w").write("shared")
        open("/dev/" + sys.argv[1], "w").write("private")
    """
    result = runs.python(program, name)
    assert (result.returncode, result.stderr) == (0, "")
    shared = Path("/dev/shm", name)
    assert shared.read_text() == "shared"
    shared.unlink()
    assert not Path("/dev", name).exists()


def test_nothing_of_ours_is_in_the_machines_dev_or_sys(runs):
    def listing():
        places = ("/dev", "/sys/bus", "/sys/bus/pci", "/sys/devices", "/sys/module", "/proc/fs")
        return {place: os.path.isdir(place) and sorted(os.listdir(place)) for place in places}

    before = listing()
    child = runs.start("sh", "-c", "echo up; read wait", stdin=-1, stdout=-1)
    assert child.stdout.readline() == b"up\n"
    assert listing() == before
    child.communicate(b"\n", timeout=LONG)


SYS_LISTING = """
    import os
    for place in ("", "/bus", "/class", "/kernel", "/module", "/devices", "/devices/virtual"):
        for name in sorted(os.listdir("/sys" + place)):
            print(place + "/" + name)
"""


def test_the_rest_of_sys_is_the_machines(runs):
    inside = set(runs.python(SYS_LISTING).stdout.splitlines())
    command = [sys.executable, "-c", textwrap.dedent(SYS_LISTING)]
    outside = set(subprocess.run(command, capture_output=True, text=True).stdout.splitlines())
    assert outside - inside == set()
    ours = {"/bus/pci", "/devices/pci0000:00", "/class/vfio-dev", "/module/vfio"}
    moved = {"/devices/machine-pci0000:00"}
    assert inside - outside <= ours | moved


def test_links_to_the_machines_devices_lead_somewhere(runs):
    program = """
        import glob, os
        for pattern in ("/sys/block/*", "/sys/class/net/*", "/sys/class/misc/*", "/sys/dev/*/*"):
            for link in sorted(glob.glob(pattern)):
                print(link, os.path.exists(link))
    """
    inside = runs.python(program).stdout
    command = [sys.executable, "-c", textwrap.dedent(program)]
    assert inside == subprocess.run(command, capture_output=True, text=True).stdout


def test_sys_cannot_be_written_to_but_its_files_can(runs):
    assert runs.run("mkdir", "/sys/new", "/sys/bus/new").returncode == 1
    program = "import os; print(os.access('/sys/kernel/rcu_expedited', os.W_OK))"
    outside = os.access("/sys/kernel/rcu_expedited", os.W_OK)
    assert runs.python(program).stdout == f"{outside}\n"


def test_the_hub_is_gone(runs):
    text = runs.run("cat", "/proc/self/mountinfo").stdout
    assert "/proc/fs" not in text
    assert not [line for line in text.splitlines() if line.split()[4].startswith("/proc/fs")]
    assert runs.run("ls", "/proc/fs").stdout.split() == sorted(os.listdir("/proc/fs"))


def test_runs_nest_without_the_inner_filter(runs):
    """Linux allows one listener: the inner run says so and goes on."""
    result = runs.run(*runs.small_run, "cat", "/dev/iommu")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "ours"
    assert "seccomp" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# ---- the end ----


def test_no_process_is_left_when_the_run_returns(runs):
    for _ in range(3):
        assert runs.run("true").returncode == 0
        assert runs.processes() == []


def test_many_runs_leave_nothing(runs, tmp_path):
    """`make soak RUNS=1000` for many; with what a user types, around the default machine."""

    def left_behind():
        named = [name for top in ("/tmp", "/run", "/dev/shm") for name in os.listdir(top)
                 if "iommufs" in name]  # fmt: skip
        sockets = Path("/proc/net/unix").read_text().count("iommufs")
        return named, sockets, our_mounts()

    n = int(os.environ.get("RUNS", "20"))
    command = [sys.executable, "-m", "iommufs.cli", "run", "--", "true"]
    before = left_behind()
    runs.environment["TMPDIR"] = str(tmp_path)
    seconds = []
    for _ in range(n):
        began = time.monotonic()
        result = subprocess.run(
            command, env=runs.environment, capture_output=True, timeout=LONG, check=False
        )
        seconds.append(time.monotonic() - began)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
        assert runs.processes() == []
    assert left_behind() == before
    assert os.listdir(tmp_path) == []
    print(f"{n} runs of true: median {statistics.median(seconds):.2f} s, "
          f"longest {max(seconds):.2f} s")  # fmt: skip


def test_the_server_outlives_the_command_as_long_as_a_daemon_does(runs, tmp_path):
    gate, answer = tmp_path / "gate", tmp_path / "answer"
    os.mkfifo(gate)
    program = """
        import os, sys
        print(os.getppid(), flush=True)
        if os.fork():
            sys.exit(6)
        os.setsid()
        if os.fork():
            os._exit(0)
        os.dup2(os.open("/dev/null", os.O_RDWR), 1)
        os.dup2(1, 2)
        open(sys.argv[1]).read()
        open(sys.argv[2], "w").write(open("/dev/iommu").read(4))
    """
    child = runs.start(
        sys.executable, "-c", textwrap.dedent(program), str(gate), str(answer), stdout=-1
    )
    server = os.pidfd_open(int(child.stdout.readline()))
    assert child.wait(LONG) == 6
    child.stdout.close()
    assert not select.select([server], [], [], 0)[0], "the server ended before the daemon"
    gate.write_text("go")
    runs.wait_for_end(server)
    assert answer.read_text() == "ours"


def test_a_killed_server_leaves_errors_and_no_hang(runs):
    program = """
        import errno, os, signal, threading
        results = []

        def note(function, *arguments):
            try:
                function(*arguments)
            except OSError as error:
                results.append(errno.errorcode[error.errno])

        fd = os.open("/dev/vfio/stuck", os.O_RDWR)
        waiting = threading.Thread(target=note, args=(os.read, fd, 1))
        waiting.start()
        while open(f"/proc/self/task/{waiting.native_id}/syscall").read().split()[0] != "0":
            pass  # 0: read(2), which never ends
        os.kill(os.getppid(), signal.SIGKILL)
        waiting.join()
        note(os.open, "/dev/iommu", os.O_RDWR)
        note(os.read, fd, 1)
        print(*results)
    """
    result = runs.python(program)
    assert result.returncode == 0, result.stderr
    first, *later = result.stdout.split()
    assert first in ("ENOTCONN", "ECONNABORTED")
    assert later == ["ENOTCONN", "ENOTCONN"]


def test_the_status_survives_the_server(runs):
    result = runs.run("sh", "-c", "kill -9 $PPID; exit 33")
    assert (result.returncode, result.stderr) == (33, "")


def test_killing_the_front_kills_the_command_and_ends_the_server(runs):
    program = "import os, signal; print(os.getpid(), os.getppid(), flush=True); signal.pause()"
    child = runs.start(sys.executable, "-c", program, stdout=-1)
    command, server = (os.pidfd_open(int(pid)) for pid in child.stdout.readline().split())
    child.kill()
    child.communicate()
    runs.wait_for_end(command)
    runs.wait_for_end(server)


def test_killing_the_command_ends_the_run(runs):
    child = runs.start("sh", "-c", "echo $$ $PPID; exec sleep 1000", stdout=-1)
    command, server = (int(pid) for pid in child.stdout.readline().split())
    ended = os.pidfd_open(server)
    os.kill(command, signal.SIGKILL)
    assert child.wait(LONG) == 128 + signal.SIGKILL
    child.stdout.close()
    runs.wait_for_end(ended)
