"""Writes golden compressions for C++: their numbers as text, their tensors as they lie in the file.

Usage: golden_compactions.py FOLDER OUT
"""

import json
import pathlib
import struct
import sys

NUMBERS = ["num_q_heads", "num_kv_heads", "head_dim", "prompt_len", "P", "R", "c", "num_comp", "kernel_size", "batch"]
NUMBERS += ["cache_len_before", "cache_len_after"]


def main(folder: pathlib.Path, out: pathlib.Path) -> None:
    out.mkdir()
    names = sorted(path.stem for path in folder.glob("*.safetensors"))
    for name in names:
        content = (folder / f"{name}.safetensors").read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        case = json.loads(header.pop("__metadata__")["case"])
        # RRPC_AGGREGATION_, RRPC_POOLING_ and RRPC_DTYPE_.
        choices = [
            ["all", "group"].index(case["aggregation"]),
            ["avgpool", "maxpool"].index(case["pooling"]),
            {"float32": 1, "bfloat16": 3}[case["dtype"]],
        ]
        (out / name).write_text(" ".join(map(str, [case[number] for number in NUMBERS] + choices)))
        for tensor, info in header.items():
            begin, end = (8 + size + offset for offset in info["data_offsets"])
            data = content[begin:end]
            if tensor == "indices":
                count = info["shape"][-1]
                values = struct.unpack(f"<{len(data) // 8}q", data)
                rows = [sorted(values[at : at + count]) for at in range(0, len(values), count)]
                data = struct.pack(f"<{len(values)}I", *(value for row in rows for value in row))
            (out / f"{name}.{tensor}").write_bytes(data)
    (out / "cases").write_text("\n".join(names) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
