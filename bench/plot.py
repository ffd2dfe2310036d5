"""The ratios of build/bench.json as a picture.

    python bench/plot.py [JSON [SVG]]

One bar for each figure: how many times its floor or peer it took, on a logarithmic axis.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

BUILD = Path(__file__).resolve().parent.parent / "build"
BAR = 0.24  # inches

# Small, and the same if it is drawn anew.
plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "iommufs"}


def plot(records: list[dict], path: Path) -> None:
    names = [f"{record['figure']} : {record['peer_name']}" for record in records]
    ratios = [record["ratio"] for record in records]
    figure, axes = plt.subplots(figsize=(11, 1 + BAR * len(records)), layout="constrained")
    bars = axes.barh(names, ratios, color=["#4878a8" if r <= 1 else "#c8843c" for r in ratios])
    axes.bar_label(bars, [f"{ratio:.2g}" for ratio in ratios], padding=3, fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times the floor or peer of the same run (1: as fast)")
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else BUILD / "bench.json"
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else source.with_suffix(".svg")
    plot(json.loads(source.read_text()), target)
    print(f"bench: a picture in {target}")


if __name__ == "__main__":
    main()
