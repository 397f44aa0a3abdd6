"""Fetch one role's raw data, from a hub, a file or the built-in generator → data/raw/<role>/<dataset>.parquet.

python -m stages.fetch instructions | preferences | benchmarks
"""

import sys
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from stages import catalog
from stages.files import replace_folder
from stages.params import ROLES, stage


def main(role: str) -> None:
    with stage("fetch", role) as params, replace_folder(Path("data/raw") / role) as folder:
        for name, cap in getattr(params.data, role).items():
            rows = list(catalog.rows(role, name, params.datasets[name], cap))
            parquet.write_table(pa.Table.from_pylist(rows, pa.schema(catalog.SCHEMAS[role])), folder / f"{name}.parquet")
            print(f"fetch: {role}: {len(rows):,} rows from {name}")


if __name__ == "__main__":
    if sys.argv[1:] not in [[role] for role in ROLES]:
        sys.exit(f"usage: python -m stages.fetch {'|'.join(ROLES)}")
    main(sys.argv[1])
