"""The picture in the README: what routing gives, from what `benchmarks.knowledge` and `benchmarks.accuracy` printed.

python -m benchmarks.knowledge --json > knowledge.json
python -m benchmarks.accuracy --json > accuracy.json
python -m benchmarks.picture knowledge.json accuracy.json --out docs/result.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

# Figure of the benchmark -> name in the picture, in order from top to bottom.
EMBLEMS = {
    "zero_shot": "frozen CLIP",
    "linear_la": "linear classifier",
    "maple_la": "MaPLe",
    "published": "MDPR, published router",
    "ours": "MDPR, paired gate",
}
FASHION = {
    "zero_shot": "frozen CLIP",
    "maple_la": "MaPLe",
    "mdpr_la": "MDPR, published router",
    "ours": "MDPR, paired gate",
}
GROUPS = {"all": "all classes", "few": "few-shot classes"}


def rows_of(figures: dict[str, float], names: dict[str, str], title: str) -> list[dict[str, Any]]:
    """A row per bar; figures that were not measured have none."""
    return [
        {"set": title, "model": name, "classes": group_name, "accuracy": figures[f"{key}_{group}"]}
        for key, name in names.items()
        for group, group_name in GROUPS.items()
        if f"{key}_{group}" in figures
    ]


def draw(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Horizontal bars, one panel per data set, as SVG that reads on light and on dark paper."""
    import altair as alt
    import pandas as pd
    import vl_convert

    base = alt.Chart().encode(
        y=alt.Y("model:N", sort=names, title=None, axis=alt.Axis(labelLimit=200)),
        yOffset=alt.YOffset("classes:N", sort=list(GROUPS.values())),
        x=alt.X("accuracy:Q", title="class-balanced test accuracy, percent", scale=alt.Scale(zero=False)),
    )
    color = alt.Color("classes:N", scale=alt.Scale(range=["#5b7fbf", "#e08a3c"]), title=None)
    bars = base.mark_bar().encode(color=color)
    text = base.mark_text(align="left", dx=3, color="#777").encode(text=alt.Text("accuracy:Q", format=".1f"))
    panels = alt.layer(bars, text, data=pd.DataFrame(rows)).properties(width=300)
    chart = panels.facet(column=alt.Column("set:N", title=None))
    styled = chart.resolve_scale(x="independent", y="independent").configure(background="transparent")
    styled = styled.configure_axis(labelColor="#777", titleColor="#777")
    styled = styled.configure_legend(labelColor="#777", orient="bottom")
    return str(vl_convert.vegalite_to_svg(styled.configure_header(labelColor="#777", labelFontSize=13).to_json()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("knowledge", type=Path)
    parser.add_argument("accuracy", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/result.svg"))
    options = parser.parse_args()
    emblems = json.loads(options.knowledge.read_text(encoding="utf-8"))["figures"]
    fashion = json.loads(options.accuracy.read_text(encoding="utf-8"))["figures"]
    rows = rows_of(emblems, EMBLEMS, "emblems: sentences that tell more than names")
    rows += rows_of(fashion, FASHION, "Fashion-MNIST, long-tailed")
    options.out.write_text(draw(rows, list(dict.fromkeys([*EMBLEMS.values(), *FASHION.values()]))), encoding="utf-8")


if __name__ == "__main__":
    main()
