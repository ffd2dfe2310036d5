"""A small Linux for guests: Debian's kernel, busybox, and a script that is its whole init."""

import lzma
import re

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for module in {modules}; do insmod /modules/$module.ko || echo "guest: no $module"; done
run() {{ set -e
{script}
}}
(run); echo "guest: status $?"
poweroff -f
"""


def _entry(number, name, mode, data=b""):
    """A file of a cpio archive in the format that Linux takes ("newc")."""
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


class Modules:
    """The modules of a kernel."""

    def __init__(self, root):
        self._paths = {
            path.name.removesuffix(".ko.xz"): path
            for path in root.glob("usr/lib/modules/*/kernel/**/*.ko.xz")
        }

    def content(self, name):
        return lzma.decompress(self._paths[name].read_bytes())

    def with_dependencies(self, names):
        """In the order in which they can be loaded."""
        found = []
        for name in names:
            needs = re.search(rb"\0depends=([^\0]*)\0", self.content(name))[1].decode()
            below = [word.replace("_", "-") for word in needs.split(",") if word]
            below = [n if n in self._paths else n.replace("-", "_") for n in below]
            found += [n for n in self.with_dependencies(below) if n not in found]
            found.append(name)
        return found


def initramfs(root, modules, script):
    """An archive whose init loads modules, runs a script with `set -e`, says how that ended."""
    kernel = Modules(root)
    ordered = kernel.with_dependencies(modules)
    init = INIT.format(modules=" ".join(ordered), script=script).encode()
    files = [(name, 0o040755, b"") for name in ("bin", "dev", "modules", "proc", "sys", "tmp")]
    files += [
        ("bin/busybox", 0o100755, (root / "usr/bin/busybox").read_bytes()),
        ("init", 0o100755, init),
        *((f"modules/{name}.ko", 0o100644, kernel.content(name)) for name in ordered),
        ("TRAILER!!!", 0, b""),
    ]
    return b"".join(_entry(i, *file) for i, file in enumerate(files, 1))
