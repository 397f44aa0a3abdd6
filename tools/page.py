"""The plots as one page that needs no network → dvc_plots/index.html.

python -m tools.page [REVISION ...]

The page of `dvc plots show` and `dvc plots diff` loads Vega from jsdelivr.net whenever it is opened; this one
holds it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import vl_convert

from stages.settings.errors import one_line_errors

# {plot_divs} is DVC's own placeholder; {scripts}, which would load Vega, is left out.
PAGE = (
    '<!doctype html>\n<html lang="en">\n<meta '
    'charset="utf-8">\n<title>Plots</title>\n<script>%s</script>\n{plot_divs}\n</html>\n'
)


def main(revisions: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder, "page.html")
        template.write_text(PAGE % vl_convert.javascript_bundle(), encoding="utf-8")
        command = ["diff", *revisions] if revisions else ["show"]
        return subprocess.run(
            [sys.executable, "-m", "dvc", "plots", *command, "--html-template", template]
        ).returncode


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
