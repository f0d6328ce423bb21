"""Write docs/errors.md from the list of codes."""

from pathlib import Path

from tellapart.errors import CODES


def page() -> str:
    """The page's text."""
    rows = "".join(f"| `{code}` | {meaning} |\n" for code, meaning in CODES.items())
    return (
        "# Error codes\n\n"
        "Every refusal has a code that never changes its name. The message says what was found and where, and the line\n"
        "below it what to do. Codes of single files also stand in the column `error` of predictions and in the column\n"
        "`reason` of `dataset.parquet`. This page is made by `make docs`.\n\n"
        f"| code | meaning |\n|---|---|\n{rows}"
    )


if __name__ == "__main__":
    (Path(__file__).parent / "errors.md").write_text(page(), encoding="utf-8")
