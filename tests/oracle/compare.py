#!/usr/bin/env python3
"""Compare a transcript of the probe with a reference transcript.

Records are matched by section, name and occurrence (the n-th record of that name in that section),
not by line number. Values that may differ from run to run are masked: see MASKS. A record matches
if its inputs, return value, errno and outputs are then equal.

Exit status: 0 all records matched, 1 some did not, 2 wrong usage or unreadable transcript.
"""

import argparse
import collections
import fnmatch
import json
import sys

# The sections that need no device. What the others record depends on the devices and the IOMMU.
CORE_SECTIONS = [
    "open",
    "fops",
    "dispatch",
    "ioas",
    "iova_ranges",
    "map",
    "unmap",
    "copy",
    "allow",
    "option",
    "option-fresh",
    "vfio_ioas",
    "map_file",
    "change_process",
    "faultq",
    "bad-objects",
    "destroy",
    "compat",
    "vfio-vfio",
    "limits",
]


def mask_fd(value):
    """Any valid file descriptor; -1 and other negative numbers, printed in hex, stay."""
    return "<fd>" if isinstance(value, int) and value >= 0 else value


def mask_address(value):
    """Any address but NULL."""
    return "<address>" if value != 0 else value


def mask_any(value):
    return "<any>"


def mask_rom(value):
    """The signature of an option ROM, 55aa, stays; what follows depends on the ROM's version."""
    return value[:4] + "<rom>" if value.startswith("55aa") else value


# What is not compared: section, name, field ("*" is a wildcard in the first two), how to mask it.
MASKS = (
    # Numbers of file descriptors depend on what the program and its parent have open.
    ("*", "*", "inputs.iommufd", mask_fd),
    ("*", "*", "inputs.fd", mask_fd),
    ("*", "*", "out.out_fault_fd", mask_fd),
    # User addresses depend on where the program put its buffers.
    ("*", "*", "inputs.user_va", mask_address),
    ("*", "*", "inputs.allowed_iovas", mask_address),
    ("*", "*", "inputs.data_uptr", mask_address),
    ("*", "*", "inputs.token_uuid_ptr", mask_address),
    ("hwpt", "*get_dirty*", "inputs.data", mask_address),
    # The minor number of /dev/iommu is given out dynamically.
    ("fops", "fstat /dev/iommu", "out.major", mask_any),
    # The option ROM comes with QEMU.
    ("regions", "* read ROM", "out.data", mask_rom),
)

COMPARED = ("inputs", "ret", "errno", "out")

Key = collections.namedtuple("Key", "section name occurrence")


class BadTranscript(Exception):
    pass


def masked(record):
    """The compared part of a record, with MASKS applied."""
    result = {part: record[part] for part in COMPARED}
    for section, name, field, mask in MASKS:
        part, field = field.split(".")
        if (
            field in result[part]
            and fnmatch.fnmatchcase(record["sect"], section)
            and fnmatch.fnmatchcase(record["name"], name)
        ):
            result[part] = {**result[part], field: mask(result[part][field])}
    return result


def load(lines, source="transcript"):
    """Records by Key, in their order."""
    records = {}
    occurrences = collections.Counter()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            pair = record["sect"], record["name"]
            masked(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadTranscript(f"{source}:{number}: not a record: {error!r}") from error
        records[Key(*pair, occurrences[pair])] = record
        occurrences[pair] += 1
    return records


def load_file(path):
    try:
        with open(path, encoding="utf-8") as file:
            return load(file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise BadTranscript(f"{path}: {error}") from error


def divergences(reference, transcript):
    """Pairs (key, what differs) in the reference's order, then records only in the transcript."""
    for key, expected in reference.items():
        got = transcript.get(key)
        if got is None:
            yield key, ["missing"]
            continue
        a, b = masked(expected), masked(got)
        different = [part for part in COMPARED if a[part] != b[part]]
        if different:
            yield key, different
    for key in transcript:
        if key not in reference:
            yield key, ["unexpected"]


def outcome(record):
    """A record's result in one line."""
    result = str(record["ret"]) if record["errno"] == "0" else record["errno"]
    return f"{result} {fields(record['out'])}".rstrip()


def fields(values):
    return " ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items())


def describe(key, different, expected, got):
    lines = [f"[{key.section}] {key.name}"]
    if key.occurrence:
        lines[0] += f" (occurrence {key.occurrence + 1})"
    if expected and got and "inputs" in different:
        lines.append(f"  inputs, expected: {fields(expected['inputs'])}")
        lines.append(f"  inputs, got:      {fields(got['inputs'])}")
    else:
        lines.append(f"  inputs:   {fields((expected or got)['inputs'])}")
    lines.append(f"  expected: {outcome(expected) if expected else 'no such record'}")
    lines.append(f"  got:      {outcome(got) if got else 'no such record'}")
    return "\n".join(lines)


def summarize(reference, transcript, found):
    """Lines "section matched/total", and the same of all; unexpected records apart."""
    total = collections.Counter(key.section for key in reference)
    bad, unexpected = collections.Counter(), collections.Counter()
    for key, different in found:
        (unexpected if different == ["unexpected"] else bad)[key.section] += 1

    def line(name, bad, total, unexpected):
        extra = f", {unexpected} unexpected" if unexpected else ""
        return f"{name:16}{total - bad}/{total}{extra}"

    sections = dict.fromkeys(key.section for records in (reference, transcript) for key in records)
    for s in sections:
        yield line(s, bad[s], total[s], unexpected[s])
    yield line("all", bad.total(), total.total(), unexpected.total())


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Compare a transcript of the probe with a reference.",
        epilog="By default the first 10 divergences and the total are shown.",
    )
    parser.add_argument("reference")
    parser.add_argument("transcript")
    parser.add_argument("--sections", metavar="A,B", help="compare only these sections")
    parser.add_argument(
        "--only-core", action="store_true", help="compare only sections that need no device"
    )
    parser.add_argument("--summary", action="store_true", help="show matched/total per section")
    parser.add_argument("--first", metavar="N", type=int, help="show the first N divergences")
    options = parser.parse_args(arguments)
    try:
        reference, transcript = load_file(options.reference), load_file(options.transcript)
    except BadTranscript as error:
        parser.error(str(error))

    chosen = {key.section for key in (*reference, *transcript)}
    if options.sections:
        wanted = set(options.sections.split(","))
        if wanted - chosen:
            parser.error("no such section: " + ", ".join(sorted(wanted - chosen)))
        chosen &= wanted
    if options.only_core:
        chosen &= set(CORE_SECTIONS)
    reference = {k: r for k, r in reference.items() if k.section in chosen}
    transcript = {k: r for k, r in transcript.items() if k.section in chosen}
    if not reference:
        parser.error("nothing to compare")

    found = list(divergences(reference, transcript))
    first = options.first
    if first is None:
        first = 0 if options.summary else 10
    for key, different in found[:first]:
        print(describe(key, different, reference.get(key), transcript.get(key)))
    lines = list(summarize(reference, transcript, found))
    print("\n".join(lines if options.summary else lines[-1:]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
