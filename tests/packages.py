"""Packages with models, as pip would install them: a directory to be put on sys.path."""

import textwrap


def install(directory, package, entries, modules):
    """entries: model name → "module:Class"; modules: module name → its text."""
    info = directory / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {where}\n" for name, where in entries.items()]
    (info / "entry_points.txt").write_text("[iommufs.models]\n" + "".join(lines))
    for name, text in modules.items():
        (directory / f"{name}.py").write_text(textwrap.dedent(text))
