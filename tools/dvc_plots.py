"""The page that `dvc plots` fills, with Vega inside: it draws without a network. .dvc/config names it.

python -m tools.dvc_plots --write     make .dvc/plots.html from vl_convert's bundle of Vega
python -m tools.dvc_plots --check     exit code 1 if it is not the one that this vl_convert makes
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / ".dvc" / "plots.html"
VEGA_LITE = "v5.20"  # of the schema that DVC's templates are written in
# Nothing is loaded from anywhere; Vega compiles expressions, which counts as eval.
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
SNIPPET = 'window.vegaEmbed = (element, spec) => vegaEmbed(element, spec, {renderer: "svg"});'


def page() -> str:
    """The template: `{plot_divs}` is where DVC puts the charts."""
    import vl_convert

    bundle = vl_convert.javascript_bundle(SNIPPET, vl_version=VEGA_LITE).replace("</script", "<\\/script")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        "<title>mdpr: plots</title>\n{refresh_tag}\n"
        "<style>body { font-family: sans-serif; margin: 1rem; } body > div { margin-bottom: 2rem; }</style>\n"
        f"<script>{bundle}</script>\n</head>\n<body>\n{{plot_divs}}\n</body>\n</html>\n"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", action="store_true")
    choice.add_argument("--check", action="store_true")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is not current: run python -m tools.dvc_plots --write", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
