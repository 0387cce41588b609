"""The engines of the benchmark as they are set."""

from __future__ import annotations

from .driver import Setting
from .schedule import Schedule

OURS = Setting("ours fp16", "ours", "ours", {"cache": "f16"})
OURS_MORE = [
    Setting("ours bf16", "ours", "ours", {"cache": "bf16"}),
    Setting("ours int8", "ours", "ours", {"cache": "i8"}, 1 + 4 / 128),
]
RPC = {"policy": "rpc", "interval": 1024, "window": 32, "ratio": 4}
OURS_RPC = Setting("ours fp16, RPC", "ours", "ours", {"cache": "f16", **RPC})
# 2,048 entries on average: 16 given, 1,872 kept, a window of 32 and, half-way between two compressions, 128 new ones.
HELD_ENTRIES, HELD_GIVEN = 2048, 16
HELD = {"policy": "rpc", "interval": 256, "window": 32, "entries": 1872}
HELD_GENERATED = 117 * 256 + 32 + 128
OURS_HELD = Setting("ours fp16, held at 2,048", "ours", "ours", {"cache": "f16", **HELD})

LLAMA = Setting("llama.cpp f16, flash attention", "llama.cpp", "gguf", {"cache": "f16", "flash_attention": True})
LLAMA_MORE = [
    Setting("llama.cpp f16, no flash attention", "llama.cpp", "gguf", {"cache": "f16", "flash_attention": False}),
    Setting("llama.cpp q8_0, flash attention", "llama.cpp", "gguf", {"cache": "q8_0", "flash_attention": True}, 34 / 32),
]
OPENVINO = Setting("OpenVINO SDPA f16", "openvino", "openvino", {"cache": "f16"})
OPENVINO_MORE = [
    Setting("OpenVINO SDPA u8", "openvino", "openvino", {"cache": "u8"}, 1 + 8 / 128),
    Setting("OpenVINO paged f16", "openvino-paged", "openvino", {"cache": "f16"}),
    Setting("OpenVINO paged u8", "openvino-paged", "openvino", {"cache": "u8"}, 1 + 8 / 128),
]
OPENVINO_EVICTING = [
    Setting(
        f"OpenVINO GenAI {cache}, evicting to 2,048",
        "openvino-genai",
        "openvino",
        {"cache": cache, "evict": HELD_ENTRIES},
        width,
    )
    for cache, width in (("f16", 2), ("u8", 1 + 8 / 128))
]
OPENVINO_GENAI = Setting("OpenVINO GenAI f16", "openvino-genai", "openvino", {"cache": "f16"})
ONNXRUNTIME = Setting("ONNX Runtime GQA fp32", "onnxruntime", "onnx-fp32", {}, 4)
ONNXRUNTIME_INT8 = Setting("ONNX Runtime GQA int8", "onnxruntime", "onnx-int8", {}, 1)
ONNXRUNTIME_GENAI = Setting("onnxruntime-genai fp32", "onnxruntime-genai", "onnx-fp32", {}, 4)

DECODE = [OURS, *OURS_MORE, LLAMA, *LLAMA_MORE, OPENVINO, *OPENVINO_MORE, ONNXRUNTIME, ONNXRUNTIME_INT8]
HELD_AT_2048 = [OURS_HELD, *OPENVINO_EVICTING]
PREFILL = [OURS, LLAMA, OPENVINO, OPENVINO_GENAI, ONNXRUNTIME, ONNXRUNTIME_GENAI]
BATCH = [OURS, OURS_RPC, LLAMA, OPENVINO, OPENVINO_MORE[1], ONNXRUNTIME_INT8]
SMOLLM2 = [OURS, LLAMA, *LLAMA_MORE, OPENVINO, OPENVINO_MORE[1]]


def schedule(setting: Setting) -> Schedule:
    names = ("interval", "window", "ratio", "entries")
    return Schedule(**{name: setting.settings[name] for name in names if name in setting.settings})
