"""`python -m bench`: every row side by side, as a table and as JSON."""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
import scipy

import npmoe
from bench.rows import ROWS


def main() -> int:
    """Run the rows that were asked for, print a table, and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Time npmoe side by side with other ways.")
    parser.add_argument("--only", choices=sorted(ROWS), help="one row")
    parser.add_argument("--json", type=Path, default=Path("bench/results/latest.json"), help="where the numbers go")
    args = parser.parse_args()
    print(f"{'row':18}{'size':32}{'npmoe ms':>10}  best of the others, ratio (10 to 90 % of pairs)")
    rows = []
    for name in [args.only] if args.only else ROWS:
        row = ROWS[name]()
        best = min(row.peers, key=lambda peer: row.peers[peer])
        print(f"{row.name:18}{row.size:32}{row.npmoe_ms:10.3f}  {best} {row.peers[best]:.3f} ms, "
              f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})", flush=True)  # fmt: skip
        rows.append(row._asdict())
    versions = {"npmoe": npmoe.__version__, "numpy": np.__version__, "scipy": scipy.__version__}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
