"""The records that may differ from Linux' answers, and the table of them in the documentation."""

import argparse
import fnmatch
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parent.parent / "docs" / "uapi-coverage.md"
BEGIN, END = "<!-- exceptions begin -->\n", "<!-- exceptions end -->\n"


@dataclass(frozen=True)
class Exception_:
    """Records of one section whose names match; `linux` and `ours` are return values or errnos."""

    section: str
    name: str
    linux: str
    ours: str
    reason: str

    def covers(self, section: str, name: str, linux: str, ours: str) -> bool:
        return (
            section == self.section
            and fnmatch.fnmatchcase(name, self.name)
            and fnmatch.fnmatchcase(linux, self.linux)
            and fnmatch.fnmatchcase(ours, self.ours)
        )


def load() -> list[Exception_]:
    """All of exceptions.toml: one [[because]] for each reason, with its records."""
    with open(HERE / "exceptions.toml", "rb") as file:
        document = tomllib.load(file)
    return [
        Exception_(*record, reason=because["reason"])
        for because in document.get("because", [])
        for record in because["records"]
    ]


def table(exceptions: list[Exception_]) -> str:
    if not exceptions:
        return "None: every record is as on Linux.\n"
    lines = ["| section | record | Linux 7.3 | here | reason |", "|---|---|---|---|---|"]
    for e in exceptions:
        cells = (e.section, e.name.replace("|", r"\|"), e.linux, e.ours, e.reason)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def document_with_table(text: str) -> str:
    """The documentation with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(load()) + END + after


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the table, or write it into the document.")
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        DOCUMENT.write_text(document_with_table(DOCUMENT.read_text()))
    else:
        print(table(load()), end="")


if __name__ == "__main__":
    main()
