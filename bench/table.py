"""The results as a Markdown table, as it stands in ``docs/speed.md``."""

from typing import Any

from bench.rows import AIMS

__all__ = ["markdown"]


def markdown(results: dict[str, Any]) -> str:
    """Rows, growth and layers of a results file, with the machine and the versions named."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [f"Machine: {results['machine']}. {versions}. {results['date']}.", ""]
    columns = ["row", "dtype", "size", "npmoe ms", "best peer ms", "ratio", "10 to 90 %", "aim, at least"]
    columns += ["plain peer, ratio", "MB ours, theirs"]
    lines += [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    lines += [_row(row) for row in results["rows"]]
    if results.get("growth"):
        lines += ["", "| row | axis | sizes | ms | slope | arithmetic |", "| --- | --- | --- | --- | ---: | ---: |"]
        lines += [_growth(growth) for growth in results["growth"]]
    if results.get("floor"):
        lines += ["", "| part | ms |", "| --- | --- |"]
        lines += [f"| {what} | {_ms(ms)} |" for what, ms in results["floor"].items()]
    for layer in results.get("layers", []):
        lines += ["", f"**{layer['name']}**", "", "| what | value |", "| --- | --- |"]
        lines += [f"| {key} | {_value(value)} |" for key, value in layer.items() if key != "name"]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    aim = AIMS.get(row["name"])
    goal = f"{aim.aim:g}, {aim.least:g}" if aim else ""
    memory = row["megabytes"]
    plain = f"{row['plain']}, {row['plain_ratio']:.1f}" if row["plain"] else ""
    if row["best"] is None:
        return f"| `{row['name']}` | {row['dtype']} | {row['size']} | {row['npmoe_ms']:.1f} | | | | {goal} | | |"
    spread = f"{row['low']:.2f} to {row['high']:.2f}" if row["rounds"] >= 3 else "one round"
    return (
        f"| `{row['name']}` | {row['dtype']} | {row['size']} | {_ms(row['npmoe_ms'])} "
        f"| {_ms(row['peers'][row['best']])} {row['best']} | {row['ratio']:.2f} "
        f"| {spread} "
        f"| {goal} | {plain} "
        f"| {memory['npmoe']:.0f}, {memory[row['best']]:.0f} |"
    )


def _growth(growth: dict[str, Any]) -> str:
    sizes, ms = (", ".join(map(str, growth["sizes"])), ", ".join(map(_ms, growth["ms"])))
    return f"| {growth['name']} | {growth['axis']} | {sizes} | {ms} | {growth['slope']:.2f} | {growth['allowed']} |"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_value, value))
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else f"{value:.0f}"
